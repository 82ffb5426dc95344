"""The best center of a run: found at evaluations, written into their metrics, and returned to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.es_config import ESConfig
from ..evaluation import best
from ..evaluation.best import Candidate
from ..evaluation.hacking import Rows
from ..rollout.rollouts import per_prompt
from .run import Run


class BestCenter:
    """Tracks it: it may be handed back (`load_best_model_at_end`), returned to (`guard`) or saved (`save_strategy:
    best`), and callbacks are told.
    """

    def __init__(self, args: ESConfig, run: Run) -> None:
        self.run, self.metric = run, best.canonical(args.metric_for_best_model)
        more = args.greater_is_better
        self.greater_is_better = best.more_is_better(self.metric) if more is None else more
        #: Whether weights of before can be had again: not where they are subtracted and no base is kept.
        self.can_return = args.restore == "exact"
        self.is_result = args.load_best_model_at_end and self.can_return
        self.found: Candidate | None = None
        #: Of the last evaluation. -1: its center is worse than the best before by more than chance explains; 1: it is
        #: the best from now on; 0: neither.
        self.verdict = 0

    @property
    def is_by_reward(self) -> bool:
        """Whether it is the best by a reward, not by a gold metric or a distance."""
        return self.metric in ("eval/reward", "eval/loss") or self.metric.startswith("eval/rewards/")

    @property
    def step(self) -> int:
        """The iteration after which the center was best; 0: the base model, or nothing is known yet."""
        return self.found.step if self.found else 0

    def load(self) -> None:
        """What the evaluations of a run that is resumed found: as the last of them recorded it, or, where the best was
        not tracked until now, by comparing them again. Raises ConfigError as `evaluation` does.
        """
        known = next((line["control"] for line in reversed(self.run.evaluations) if "control" in line), None)
        if known and (line := self.run.evaluation(known["best_step"])):
            self.found = best.candidate(self.metric, line, per_prompt(self.run.completions(line)))
            self.verdict = known["verdict"]
        elif not known:
            for line in self.run.evaluations:
                self.evaluation(line, self.run.completions(line))

    def evaluation(self, metrics: Mapping[str, Any], rows: Rows, *, sound: bool = True) -> dict[str, Any]:
        """Compare the center of an evaluation with the best before, which it replaces if it is better and `sound`: not
        one that counts as diverged. Returns what to record. Raises ConfigError for a metric that evaluations lack.
        """
        new, greater = best.candidate(self.metric, metrics, per_prompt(rows)), self.greater_is_better
        if self.found is None or (sound and best.replaces(new, self.found, greater_is_better=greater)):
            self.found, self.verdict = new, 1
        else:
            self.verdict = best.compare(new, self.found, greater_is_better=greater)
        shown = {"es/best_step": self.found.step} if self.is_result else {}
        return {**shown, "control": {"best_step": self.found.step, "verdict": self.verdict}}

    def hand_back(self) -> str:
        """Make the best center the run's; returns what to tell the user."""
        assert self.found is not None
        self.run.become(self.step)
        name = self.metric.removeprefix("eval/")
        if not self.step:
            return (
                f"No center of this run is better than the base model ({name} {self.found.value:.4g}) by more than "
                "chance explains, so the base model is handed back."
            )
        return f"The best center is the one after iteration {self.step} ({name} {self.found.value:.4g})."
