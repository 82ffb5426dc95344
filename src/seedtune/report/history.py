"""A run as its folder tells it: what the page and its figures are made of."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RunFolderError
from ..journal.folder import LOCK, RunFolder, read_lines
from ..journal.record import Iteration
from ..journal.store import NAME, Journal

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class History:
    """All of it from files, so a run that is over, was killed, or goes on right now are read alike.

    `evaluations` and `iterations` are lines of `metrics.jsonl`; a run whose metrics are lost has its journal still.
    """

    folder: Path
    header: Mapping[str, Any]
    journal: Sequence[Iteration]
    evaluations: Rows
    iterations: Rows
    before: Rows
    after: Rows
    settings: str
    environment: Mapping[str, Any]
    checkpoints: Sequence[str]
    running: bool
    notes: Sequence[str]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings that the result depends on."""
        return self.header["config"]  # type: ignore[no-any-return]

    @property
    def model(self) -> str:
        return str(self.header["base"]["model"])

    def generations(self, step: int) -> int:
        """Sample evaluations up to iteration `step`: members times prompts."""
        return sum(len(it.rewards_M) * len(it.prompts) for it in self.journal[:step])

    @property
    def members(self) -> list[dict[str, Any]]:
        """By iteration, mean and deviation of the members' rewards."""
        return [
            {
                "step": it.t,
                "generations": self.generations(it.t),
                "mean": _over(np.mean, it.rewards_M),
                "std": _over(np.std, it.rewards_M),
            }
            for it in self.journal
        ]

    @property
    def truths(self) -> list[str]:
        """Names of what is measured and never optimised, the first of them what is meant."""
        known = ("reward", "reward_std", "kl", "kl_ci95", "distance", "perplexity", "hacked")
        names = [key.removeprefix("eval/") for key in (self.evaluations[0] if self.evaluations else {})]
        found = [n for n in names if n not in known and not n.startswith(("rewards/", "completions/", "time"))]
        column = self.before[0] if self.before else None  # what a function logged by itself has no column there
        return [n for n in found if n != "step" and "/" not in n and (column is None or n in column)]


def _over(statistic: Callable[..., Any], rewards_M: Sequence[float]) -> float | None:
    """Over the members that were scored."""
    scored = [r for r in rewards_M if r == r]
    return float(statistic(scored)) if scored else None


def read(folder: Path) -> History:
    """Raises RunFolderError for what is no run, JournalError for a damaged journal."""
    run = RunFolder(folder)
    if not run.has_journal:
        raise RunFolderError(
            f"{folder} is neither a run nor a comparison: it has no {NAME} and no comparison.json. Give the output_dir "
            "of a run, or of seedtune compare."
        )
    journal, torn = Journal.read(run.path, mend=False)
    lines = [line for line in run.metrics() if isinstance(line.get("step"), int)]
    done = len(journal.iterations)
    evaluations = [line for line in lines if "eval/reward" in line and line["step"] <= done]
    iterations = [line for line in lines if "reward" in line and line["step"] <= done]
    notes = [torn] if torn else []
    if done and not iterations:
        notes.append("metrics.jsonl is missing or empty: what follows is from the journal alone")
    first, last = (evaluations[0], evaluations[-1]) if evaluations else ({}, {})
    return History(
        run.path,
        journal.header,
        journal.iterations,
        evaluations,
        iterations,
        _rows(run, first),
        _rows(run, last) if len(evaluations) > 1 else [],
        _text(run.path / "config.resolved.yaml"),
        _environment(run.path / "environment.json"),
        [path.name for path in run.checkpoints()],
        held(run.path),
        notes,
    )


def _rows(run: RunFolder, evaluation: Mapping[str, Any]) -> Rows:
    rows = read_lines(run.completions(f"eval-{evaluation['step']}")) if evaluation else []
    return [row for row in rows if {"prompt", "completion", "reward"} <= set(row)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _environment(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def held(run: Path) -> bool:
    """Whether a process is running in the folder."""
    lock = run / LOCK
    if not lock.exists():
        return False
    with lock.open() as f:
        try:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False
