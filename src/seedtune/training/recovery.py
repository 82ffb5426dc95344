"""What a run does when it diverges: it returns to its best center, and goes on with smaller steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import ModelError, NotFiniteError
from ..report.signal import where
from .best_center import BestCenter
from .guard import HALF, MAX_RETURNS, Guard
from .run import Run
from .step_control import StepControl

log = logging.getLogger(__name__)


class Recovery:
    """Watches a run that was started or resumed, where `guard` says so, and takes it back. `comparable`: iterations
    have the same kind of prompts, so that rewards can be compared over the run.
    """

    def __init__(self, run: Run, best: BestCenter, steps: StepControl, *, comparable: bool) -> None:
        self.run, self.best, self.steps, self.comparable = run, best, steps, comparable
        self.guard = Guard(run.args.max_kl)
        self.watches = run.args.guard and bool(run.journal.header.get("guard"))  # of a run of 0.1.0 it changes nothing
        self._diverged: str | None = None  # why

    def load(self) -> None:
        """Watch a run that is resumed as the run on disk did, whose returns have made steps smaller."""
        for undone in self.run.journal.returns:
            if undone.t == self.run.step:
                self.steps.went_back(undone.scale)
            else:
                self.steps.scale *= undone.scale
        returned, stage_before = {undone.t for undone in self.run.journal.returns}, 0.0
        for line in self.run.iterations if self.watches else []:
            if (stage := line.get("control", {}).get("reward_stage", 0.0)) != stage_before:
                self.forget_rewards()
            stage_before = stage
            self.iteration(line)
            if line["step"] in returned:
                self._diverged = None
                self.forget_rewards()

    def forget_rewards(self) -> None:
        """What members earned so far says nothing about what they will earn."""
        self.guard.forget_rewards()

    def iteration(self, metrics: Mapping[str, Any]) -> None:
        """After an iteration, with its metrics."""
        self._diverged = self.guard.iteration(metrics, comparable=self.comparable) if self.watches else None

    def is_sound(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the center that was just evaluated may become the best."""
        diverged = self._diverged or (self.watches and self.guard.evaluation(metrics, 0))
        return not diverged and not metrics.get("eval/collapsed")

    def why_diverged(self, evaluation: Mapping[str, Any] | None) -> str | None:
        """Why the run counts as diverged, after an iteration and the evaluation of its center, if there was one; None:
        it does not.
        """
        if evaluation and self.watches:
            verdict = self.best.verdict if self.best.greater_is_better else 0  # by a distance the base is always best
            self._diverged = self._diverged or self.guard.evaluation(evaluation, verdict, self.best.metric)
        return self._diverged

    def go_back(self, reason: str) -> str | None:
        """Return to the best center, and go on with smaller steps; or end the run, when that was tried often enough:
        then this returns why it ends.
        """
        t, done, to = self.run.step, len(self.run.journal.returns), self.best.step
        if done >= MAX_RETURNS or t >= self.run.args.max_steps or not self.best.can_return:
            times = f", though it had returned to a better center {done} times" if done else ""
            return f"Ended after iteration {t}: {reason}{times}."
        scale = float(f"{self.guard.scale:.2g}")
        told = "iteration %d: %s. The run returns to %s and goes on with %g times the learning rate."
        log.warning(told, t, reason, where(to), scale)
        self._diverged = None
        self.run.go_back(to, scale, reason)
        self.steps.went_back(scale)
        self.forget_rewards()
        return None

    def give_up_center(self, error: NotFiniteError) -> str | None:
        """The center, or members of it, compute no numbers: return to the best center and go on with smaller steps, or
        end the run with the last center that was evaluated. Returns why it ends, if it does. Raises the error where
        there is no other center than the base, or no way back to it.
        """
        t = self.run.step
        if not t or not self.best.can_return:
            raise error
        reason = "the model's logits or weights are no numbers any more (NaN or infinity)"
        if self.watches and len(self.run.journal.returns) < MAX_RETURNS and t < self.run.args.max_steps:
            return self.go_back(reason)
        sound = max((line["step"] for line in self.run.evaluations if line["step"] <= t), default=0)
        what = where(sound)
        if sound < t or self.run.center != t:
            try:
                self.run.go_back(sound, HALF, reason)
            except ModelError as e:  # the base was not kept in memory
                raise NotFiniteError(f"iteration {t}: {reason}. The journal leads back to {what}.") from e
        return f"Ended after iteration {t}: {reason}. Kept is {what}; try a smaller learning_rate or sigma."
