"""Is the run diverging? Read off the metrics of iterations and evaluations since the last return."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: KL per token of one step, measured: beyond it a step is no small one.
MAX_STEP_KL = 0.5
#: Members' rewards are compared as means of so many iterations; they have fallen when they are so many standard errors
#: below the best such mean before.
_WINDOW, _ERRORS = 3, 4.0
#: Share of members' completions that are cut off, or tokens per completion, at which nothing can be learned from them.
_ALL_CUT_OFF, _ALL_EMPTY = 0.95, 0.5
#: Returns per run, and the factor of the learning rate with each, at most: where a step's KL was measured, the next one
#: is made to have half the bound.
MAX_RETURNS, HALF = 3, 0.5


class Guard:
    """Watches one run. Its methods return why the run counts as diverged, or None."""

    def __init__(self, max_kl: float) -> None:
        self.max_kl = max_kl
        self.scale = HALF
        self._first: Mapping[str, Any] | None = None
        self._rewards: list[tuple[float, float]] = []

    def forget_rewards(self) -> None:
        """Rewards so far say nothing about what follows."""
        self._rewards = []

    def iteration(self, metrics: Mapping[str, Any], *, comparable: bool = True) -> str | None:
        """After an iteration; sets `scale`, by which learning rates are multiplied if it diverged. `comparable`: its
        rewards are of the same kind of prompts as those of iterations before.
        """
        step = metrics.get("es/step_kl_measured", 0.0)
        self.scale = min(HALF, math.sqrt(MAX_STEP_KL / 2 / step)) if 0 < step < math.inf else HALF
        self._first = self._first or metrics
        self._rewards.append((metrics["reward"], metrics.get("es/reward_error", math.nan)))
        for name, bound, what in (
            ("es/step_kl_measured", MAX_STEP_KL, "one step moved the center by {:.3g} nats per token"),
            ("es/kl_measured", self.max_kl, "the center is {:.3g} nats per token from the base model"),
        ):
            if (kl := metrics.get(name)) is None:
                continue
            if not math.isfinite(kl):
                return "the weights yield no numbers any more (NaN or infinity)"
            if kl > bound:
                return f"{what.format(kl)} (the bound is {bound:g})"
        if not math.isfinite(metrics["es/update_norm"]):
            return "the update is not a finite number"
        length, cut = metrics["completions/mean_length"], metrics["completions/clipped_ratio"]
        if length < _ALL_EMPTY <= self._first["completions/mean_length"]:
            return "members' completions are empty"
        if cut >= _ALL_CUT_OFF and self._first["completions/clipped_ratio"] < 0.5:
            return f"{cut:.0%} of members' completions are cut off at the length limit"
        return self._fallen() if comparable else None

    def evaluation(self, metrics: Mapping[str, Any], verdict: int, metric: str = "eval/reward") -> str | None:
        """After an evaluation; `verdict` -1: by this metric its center is worse than the best by more than chance
        explains.
        """
        if metrics.get("eval/collapsed"):
            return "different prompts get the same answer, by which confidence can be earned"
        kl = metrics.get("eval/kl")
        if kl is not None and kl > self.max_kl:
            return f"the center is {kl:.3g} nats per token from the base model (max_kl is {self.max_kl:g})"
        if verdict < 0:
            return f"the center has become worse: its {metric.removeprefix('eval/')} is {metrics[metric]:.3g}"
        return None

    def _fallen(self) -> str | None:
        windows = [self._rewards[n - _WINDOW : n] for n in range(_WINDOW, len(self._rewards) + 1)]
        if len(windows) <= _WINDOW:
            return None
        (last, error), earlier = _mean(windows[-1]), [_mean(window) for window in windows[:-_WINDOW]]
        best, error_then = max(earlier, key=lambda mean_and_error: mean_and_error[0])
        if best - last > _ERRORS * math.hypot(error, error_then):
            return f"members' rewards fell from {best:.3g} to {last:.3g}, by more than their noise"
        return None


def _mean(window: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean reward of some iterations, and its standard error."""
    rewards, errors = zip(*window, strict=True)
    return sum(rewards) / len(window), math.hypot(*errors) / len(window)
