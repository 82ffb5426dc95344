"""Cells one after another, each in a process of its own; what is done already is not done again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..environment import environment
from ..errors import RunFolderError, SaveError
from ..evaluate.audit import hacking
from ..journal.folder import read_lines, write_text
from ..report.comparison_page import NAME
from .plan import Cell, Comparison

BASE = Cell("base", "base", "", {}, 0)
_LOOK_EVERY = 0.5


@dataclass(frozen=True)
class Outcome:
    """Of one cell: its result (what `cell.py` writes), or why there is none."""

    cell: Cell
    result: dict[str, Any] | None
    error: str = ""


def run(comparison: Comparison, folder: Path, on_progress: Callable[[Cell, int], None]) -> Iterator[Outcome]:
    """The base model's cell, then all others, as they end; `comparison.json` is written after each.

    `on_progress` is told how many completions the running cell has generated. A cell that fails is an outcome like
    another. Raises RunFolderError when the folder holds other cells, SaveError when it cannot be written.
    """
    cells = [BASE, *comparison.cells]
    for cell in cells:
        _prepare(comparison, cell, folder / cell.folder)
    asked = {**comparison.asked, "output_dir": str(folder)}
    write_text(folder / "compare.yaml", yaml.safe_dump(asked, sort_keys=False))
    outcomes: list[Outcome] = []
    for cell in cells:
        outcomes.append(_outcome(cell, folder / cell.folder, on_progress))
        write_text(folder / NAME, json.dumps(summary(comparison, outcomes), indent=2, default=str) + "\n")
        yield outcomes[-1]


def _prepare(comparison: Comparison, cell: Cell, folder: Path) -> None:
    given = {
        "shared": {key: value for key, value in comparison.given.items() if key != "output_dir"},
        "label": cell.label,
        "function": cell.function,
        "settings": dict(cell.settings),
        "seed": cell.seed,
        "generations": comparison.generations,
        "evaluations": comparison.evaluations,
        "samples": comparison.samples,
    }
    text = json.dumps(given, indent=2, sort_keys=True, default=str) + "\n"
    path = folder / "cell.json"
    if path.exists() and path.read_text() != text:
        raise RunFolderError(
            f"{folder} holds a cell of another comparison (its cell.json says which). Give another --output_dir, or "
            "remove that folder to run the cell anew; nothing was changed."
        )
    write_text(path, text)


def _outcome(cell: Cell, folder: Path, on_progress: Callable[[Cell, int], None]) -> Outcome:
    done = folder / "result.json"
    if not done.exists():
        error = _process(cell, folder, on_progress)
        if error:
            return Outcome(cell, None, error)
    return Outcome(cell, json.loads(done.read_text()))


def _process(cell: Cell, folder: Path, on_progress: Callable[[Cell, int], None]) -> str:
    """Run the cell; why it failed, or nothing."""
    try:
        log = (folder / "log.txt").open("w")
    except OSError as e:
        raise SaveError(f"cannot write into {folder}: {e.strerror or e}.") from e
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", "seedtune.compare.cell", str(folder)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        ) as process,
    ):
        try:
            while process.poll() is None:
                steps = read_lines(folder / "progress.jsonl")
                on_progress(cell, int(steps[-1]["generations"]) if steps else 0)
                time.sleep(_LOOK_EVERY)
        except BaseException:
            process.terminate()
            raise
    if process.returncode == 0:
        return ""
    said = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    last = said[-1].removeprefix("error: ") if said else "it said nothing"
    return f"exit code {process.returncode}: {last} ({folder / 'log.txt'})"


def summary(comparison: Comparison, outcomes: list[Outcome]) -> dict[str, Any]:
    """What `comparison.json` holds: the question and, by cell, the answer. The report is made from it."""
    return {
        "model": comparison.shared.model_name_or_path,
        "task": comparison.shared.task or comparison.shared.dataset_name,
        "settings": dict(comparison.given),
        "generations": comparison.generations,
        "samples": comparison.samples,
        "target": comparison.target,
        "truth": comparison.truth,
        "environment": environment(),
        "planned": [cell.folder for cell in comparison.cells],
        "cells": [
            {
                "label": o.cell.label,
                "method": o.cell.method,
                "settings": dict(o.cell.settings),
                "seed": o.cell.seed,
                "folder": o.cell.folder,
                "result": o.result,
                "error": o.error,
                "hacked": _hacked(comparison, outcomes[0], o),
            }
            for o in outcomes
        ],
    }


def _hacked(comparison: Comparison, base: Outcome, outcome: Outcome) -> list[str]:
    """What the truth says of the answers at the end, against the base model's."""
    if base.result is None or outcome.result is None or outcome.cell is BASE or comparison.truth is None:
        return []
    before, after = (o.result["points"][-1]["completions"] for o in (base, outcome) if o.result)
    return [str(finding) for finding in hacking(before, after, [comparison.truth])]
