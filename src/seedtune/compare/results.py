"""`comparison.json` and the files of its cells. Names of 0.1.0 are read as those of now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RunFolderError

NAME = "comparison.json"
#: Keys of 0.1.0, and their names now.
_RENAMED = {"generations": "num_completions", "truth": "gold_metric"}


def renamed(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds, with the keys of now."""
    return {_RENAMED.get(key, key): value for key, value in line.items()}


def read_result(text: str) -> dict[str, Any]:
    """The `result.json` of a cell."""
    return _result(json.loads(text))


def read(folder: Path) -> dict[str, Any]:
    """`comparison.json` of `folder`. Raises RunFolderError when it is damaged."""
    with refusing_damage(folder):
        comparison = renamed(json.loads((folder / NAME).read_text(encoding="utf-8")))
        results = [cell["result"] and _result(cell["result"]) for cell in comparison["cells"]]
        cells = [{**cell, "result": result} for cell, result in zip(comparison["cells"], results, strict=True)]
        first = comparison["gold_metric"]  # the only one that 0.1.0 wrote
        return {"gold_metrics": [] if first is None else [first], **comparison, "cells": cells}


@contextmanager
def refusing_damage(folder: Path) -> Iterator[None]:
    """Errors of reading a damaged `comparison.json` become a RunFolderError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise RunFolderError(
            f"{folder / NAME} is damaged ({e}): run seedtune compare again; cells with a result are not run again."
        ) from e


def _result(result: Mapping[str, Any]) -> dict[str, Any]:
    return {**result, "points": [renamed(point) for point in result["points"]]}
