"""Runs cells one after another, each in a process of its own; cells with a result are not run again."""

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

from ..errors import RunFolderError, SaveError
from ..evaluation.hacking import hacking
from ..utils.environment import environment
from ..utils.files import read_lines, write_text
from ..utils.paths import AnyPath, local_path
from ..utils.processes import check_alone
from .comparison import Cell, Comparison
from .results import NAME, read_result, renamed

BASE = Cell("base", "base", "", {}, 0)
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """The result of one cell (what `cell.py` writes), or why there is none."""

    cell: Cell
    result: dict[str, Any] | None
    error: str = ""


def run(comparison: Comparison, folder: AnyPath, on_progress: Callable[[Cell, int], None]) -> Iterator[Outcome]:
    """Outcomes of the base model's cell and then of all others, as they end; `comparison.json` is written after each.

    `on_progress` is called with how many completions the running cell has generated. A cell that fails is an outcome
    like any other. Raises ConfigError beside other processes of a launcher, RunFolderError when the folder holds other
    cells, SaveError when it cannot be written.
    """
    check_alone("local")
    folder = local_path(folder)
    cells = [BASE, *comparison.cells]
    for cell in cells:
        _prepare(comparison, cell, folder / cell.folder)
    settings = {**comparison.settings, "output_dir": str(folder)}
    write_text(folder / "compare.yaml", yaml.safe_dump(settings, sort_keys=False))
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
        "num_completions": comparison.num_completions,
        "evaluations": comparison.evaluations,
        "samples": comparison.samples,
    }
    text = json.dumps(given, indent=2, sort_keys=True, default=str) + "\n"
    path = folder / "cell.json"
    if path.exists() and renamed(json.loads(path.read_text())) != json.loads(text):
        raise RunFolderError(
            f"{folder} holds a cell of another comparison (its cell.json says which). Give another --output_dir, or "
            "remove that folder to run the cell again; nothing was changed."
        )
    write_text(path, text)


def _outcome(cell: Cell, folder: Path, on_progress: Callable[[Cell, int], None]) -> Outcome:
    done = folder / "result.json"
    if not done.exists():
        error = _process(cell, folder, on_progress)
        if error:
            return Outcome(cell, None, error)
    return Outcome(cell, read_result(done.read_text()))


def _process(cell: Cell, folder: Path, on_progress: Callable[[Cell, int], None]) -> str:
    """Run the cell. Returns why it failed, or an empty text."""
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
                on_progress(cell, int(renamed(steps[-1])["num_completions"]) if steps else 0)
                time.sleep(_POLL_SECONDS)
        except BaseException:
            process.terminate()
            raise
    if process.returncode == 0:
        return ""
    log_lines = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    last = log_lines[-1].removeprefix("error: ") if log_lines else "it wrote no message"
    return f"exit code {process.returncode}: {last} ({folder / 'log.txt'})"


def summary(comparison: Comparison, outcomes: list[Outcome]) -> dict[str, Any]:
    """The content of `comparison.json`: the settings, and the result of each cell. The report is made from it."""
    return {
        "model": comparison.shared.model_name_or_path,
        "task": comparison.shared.task or comparison.shared.dataset_name,
        "settings": dict(comparison.given),
        "num_completions": comparison.num_completions,
        "samples": comparison.samples,
        "target": comparison.target,
        "gold_metric": next(iter(comparison.gold_metrics), None),
        "gold_metrics": list(comparison.gold_metrics),
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
    """Which gold metrics of the last completions fell, compared with the base model's, while the reward rose."""
    if base.result is None or outcome.result is None or outcome.cell is BASE:
        return []
    before, after = (o.result["points"][-1]["completions"] for o in (base, outcome) if o.result)
    return [str(finding) for finding in hacking(before, after, comparison.gold_metrics)]
