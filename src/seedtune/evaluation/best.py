"""Which center is the best, allowing for the noise of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..rewards.metric_names import column_of
from . import statistics
from .statistics import Floats

#: Metrics of which less is better, unless `greater_is_better` says otherwise.
_LESS = ("kl", "loss", "perplexity", "distance", "hacked", "brier", "calibration_error")


@dataclass(frozen=True)
class Candidate:
    """A center that was evaluated: after which iteration (0: the base model), its metric, that of each prompt where it
    is known (else empty), and its KL from the base model with half the width of its interval.
    """

    step: int
    value: float
    values_P: Floats
    kl: float
    kl_half: float = 0.0


def canonical(metric: str | None) -> str:
    """`reward`, `eval_reward` and `eval/reward` are one metric; the default is that."""
    name = (metric or "reward").removeprefix("eval/").removeprefix("eval_")
    return f"eval/{name}"


def more_is_better(metric: str) -> bool:
    """Unless it is the name of a loss, or of a distance from the base model."""
    return not metric.removeprefix("eval/").endswith(_LESS)


def candidate(metric: str, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Candidate:
    """From the metrics of an evaluation, and its completions. Raises ConfigError where the metric is not there."""
    sign, metric = (-1, "eval/reward") if metric == "eval/loss" else (1, metric)
    name = metric.removeprefix("eval/")
    function = name.removeprefix("rewards/").removesuffix("/mean")
    column = name if function == name else column_of(function)
    per_prompt = [row.get(column, "") for row in rows]
    known = all(value is None or isinstance(value, int | float) for value in per_prompt)
    values = sign * np.array([math.nan if v is None else float(v) for v in per_prompt]) if known else np.array([])
    kl, half = (float(metrics.get(name, default)) for name, default in (("eval/kl", math.nan), ("eval/kl_ci95", 0.0)))
    value = sign * statistics.metric(metrics, metric, "metric_for_best_model")
    return Candidate(int(metrics["step"]), value, values, kl, half)


def compare(new: Candidate, old: Candidate, *, greater_is_better: bool = True) -> int:
    """1: `new` is better, -1: worse, by more than chance explains: one-sided at 95 %, over the differences of the same
    prompts; 0: neither. Without values per prompt, or with one prompt, the metrics themselves are compared.
    """
    sign = 1 if greater_is_better else -1
    if len(new.values_P) == len(old.values_P) > 1:
        change = statistics.mean(sign * (new.values_P - old.values_P))
        bound = change.half * statistics.one_sided(change.count)
        if change.count > 1:
            return int(change.mean > bound) - int(change.mean < -bound)
    change_of_value = sign * (new.value - old.value)
    return int(change_of_value > 0) - int(change_of_value < 0)


def replaces(new: Candidate, best: Candidate, *, greater_is_better: bool = True) -> bool:
    """Whether `new` is the best from now on: it is better; or as good, and nearer to the base model; or as good and as
    near, by what is known of both, and its metric is the higher one.
    """
    verdict = compare(new, best, greater_is_better=greater_is_better)
    if verdict:
        return verdict > 0
    nearer, uncertain = best.kl - new.kl, max(new.kl_half, best.kl_half)
    if abs(nearer) > uncertain:
        return nearer > 0
    return (new.value > best.value) if greater_is_better else (new.value < best.value)
