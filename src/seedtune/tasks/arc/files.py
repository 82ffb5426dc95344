"""Tasks in ARC's format: a JSON file has `train` and `test`, lists of objects with the grids `input` and `output`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...utils.paths import local_path

Grid = list[list[int]]
#: The longest side of a grid.
LARGEST = 30


def read_folder(folder: Path | str) -> dict[str, dict[str, Any]]:
    """The tasks of a folder by the names of their files, in the order of these names. Raises DataError."""
    path = local_path(str(folder))
    if not path.is_dir():
        raise DataError(f"task: arc: there is no folder {str(folder)!r} (looked in {Path.cwd()}).")
    files = sorted(path.glob("*.json"))
    if not files:
        raise DataError(f"task: arc: the folder {str(folder)!r} has no .json files.")
    return {file.stem: read_task(file) for file in files}


def read_task(file: Path) -> dict[str, Any]:
    """One task. Raises DataError that says what is wrong with it."""
    try:
        task = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"task: arc: {file}: it is not JSON: {e}") from None
    if not isinstance(task, Mapping) or not all(task.get(part) for part in ("train", "test")):
        raise DataError(f"task: arc: {file}: it needs train and test, lists of pairs of grids.")
    for part in ("train", "test"):
        pairs = task[part] if isinstance(task[part], list) else [None]
        for number, pair in enumerate(pairs, 1):
            for which in ("input", "output"):
                if not isinstance(pair, Mapping) or not is_grid(pair.get(which)):
                    raise DataError(
                        f"task: arc: {file}: {part}, pair {number}: {which} is a grid, a list of rows of equal length, "
                        f"1 to {LARGEST} each way, of colors 0 to 9; got {str(pair)[:80]}."
                    )
    return dict(task)


def is_grid(value: Any) -> bool:
    """Whether it is a grid of colors."""
    if not isinstance(value, list) or not 1 <= len(value) <= LARGEST:
        return False
    if not all(isinstance(row, list) and 1 <= len(row) <= LARGEST and len(row) == len(value[0]) for row in value):
        return False
    return all(type(cell) is int and 0 <= cell <= 9 for row in value for cell in row)


def shown(grid: Grid) -> str:
    """As digits, a line per row."""
    return "\n".join("".join(map(str, row)) for row in grid)
