"""A run, read from its folder: the data of the page and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import RunFolderError
from ..journal.folder import BEST, LOCK, RunFolder, best_step
from ..journal.record import Iteration, Return
from ..journal.store import NAME, Journal
from ..utils.files import read_lines
from ..utils.locks import lock
from ..utils.paths import AnyPath
from .format import LABELS

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class History:
    """Read from files only, so that a run may be finished, killed, or still going on.

    `evaluations` and `iterations` are lines of `metrics.jsonl`; both are empty when that file is missing. `before` and
    `after`: completions of the first evaluation, and of `compared`.
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
    returns: Sequence[Return] = ()

    @property
    def best(self) -> int | None:
        """The iteration after which the center was best (0: the base model); None: that was not tracked."""
        return best_step(self.evaluations)

    @property
    def compared(self) -> Mapping[str, Any]:
        """The evaluation that the first is compared with: of the best center, or of the last where none is better than
        the base model; empty where there is no second one.
        """
        return _compared(self.evaluations)

    @property
    def is_over(self) -> bool:
        """Whether the best center was handed back: it may still change before."""
        return not self.running and f"checkpoint-{BEST}" in self.checkpoints

    @property
    def members_per_iteration(self) -> int:
        return len(self.journal[0].rewards_M) if self.journal else 0

    @property
    def is_antithetic(self) -> bool:
        """Whether members are mirrored pairs."""
        return bool(self.config.get("antithetic"))

    def setting(self, name: str, default: Any = None) -> Any:
        """As config.resolved.yaml has it, or else the journal."""
        try:
            known = yaml.safe_load(self.settings)
        except yaml.YAMLError:
            known = None
        value = {**self.config, **(known if isinstance(known, dict) else {})}.get(name)
        return default if value is None else value

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings that the weights depend on."""
        config: Mapping[str, Any] = self.header["config"]
        return config

    @property
    def model(self) -> str:
        return str(self.header["base"]["model"])

    @property
    def reads(self) -> bool:
        """Whether the run read given completions, and decoded none."""
        return any("completions/loss" in line for line in self.iterations)

    def num_completions(self, step: int) -> int:
        """Completions generated up to iteration `step`: members times prompts times samples."""
        each, samples = self.config.get("prompts_per_member"), int(self.config.get("num_generations", 1))
        return samples * sum(len(it.rewards_M) * (each or len(it.prompts)) for it in self.journal[:step])

    @property
    def num_eval_prompts(self) -> int:
        """Prompts that the center was evaluated on, as far as its completions are there."""
        return len({row.get("prompt_index", n) for n, row in enumerate(self.before)})

    @property
    def members(self) -> list[dict[str, Any]]:
        """Per iteration, mean and standard deviation of the members' rewards."""
        return [
            {
                "step": it.t,
                "completions": self.num_completions(it.t),
                "mean": _over(np.mean, it.rewards_M),
                "std": _over(np.std, it.rewards_M),
            }
            for it in self.journal
        ]

    @property
    def gold_metrics(self) -> list[str]:
        """Names of what is measured and never optimized; the first of them says what is meant."""
        known = {"reward", "reward_std", "kl_ci95", "hacked", "control", *LABELS}
        names = [key.removeprefix("eval/") for key in (self.evaluations[0] if self.evaluations else {})]
        found = [n for n in names if n not in known and not n.startswith(("rewards/", "completions/", "time"))]
        column = self.before[0] if self.before else None  # metrics that a function logged have no column there
        return [n for n in found if n != "step" and "/" not in n and (column is None or n in column)]


def _over(statistic: Callable[..., Any], rewards_M: Sequence[float]) -> float | None:
    """Over the members that were scored."""
    scored = [r for r in rewards_M if r == r]
    return float(statistic(scored)) if scored else None


def read(folder: AnyPath) -> History:
    """Raises RunFolderError for a folder without a run, JournalError for a damaged journal."""
    run = RunFolder(folder)
    if not run.has_journal:
        raise RunFolderError(
            f"{run.given} is neither a run nor a comparison: it has no {NAME}. Give the output_dir of seedtune train "
            "or of seedtune compare."
        )
    journal, torn = Journal.read(run.path, repair=False)
    lines = [line for line in run.metrics() if isinstance(line.get("step"), int)]
    done = len(journal.iterations)
    evaluations = [line for line in lines if "eval/reward" in line and line["step"] <= done]
    iterations = [line for line in lines if "reward" in line and line["step"] <= done]
    notes = [torn] if torn else []
    if done and not iterations:
        notes.append("metrics.jsonl is missing or empty: this page is made from the journal alone")
    first = evaluations[0] if evaluations else {}
    best = [run.path / f"checkpoint-{BEST}"]
    return History(
        run.given,
        journal.header,
        journal.iterations,
        evaluations,
        iterations,
        _rows(run, first),
        _rows(run, _compared(evaluations)),
        _text(run.path / "config.resolved.yaml"),
        _environment(run.path / "environment.json"),
        [path.name for path in [*run.checkpoints(), *best] if path.is_dir()],
        held(run.path),
        notes,
        journal.returns,
    )


def _compared(evaluations: Rows) -> Mapping[str, Any]:
    others, best = evaluations[1:], best_step(evaluations)
    return next((line for line in others if line["step"] == best), others[-1] if others else {})


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
    """Whether a process has locked the folder: the run is going on."""
    file = run / LOCK
    if not file.exists():
        return False
    with file.open() as f:
        try:
            lock(f, shared=True)
        except BlockingIOError:
            return True
        return False
