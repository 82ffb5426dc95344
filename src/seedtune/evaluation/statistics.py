"""Means with their uncertainty. Numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

Floats = NDArray[np.float64]

#: Two-sided 95 % quantiles of Student's t, by degrees of freedom; beyond the table the normal's.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip

#: Two-sided 90 % quantiles, which are one-sided ones at 95 %.
_T90 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753, 1.746,
        1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699, 1.697)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean, half the width of its 95 % confidence interval (NaN when there is one value only), and how many
    independent values it rests on.
    """

    mean: float
    half: float
    count: int

    def to_json(self) -> dict[str, Any]:
        """As files hold it: `mean`, `ci95` (None where it is not known), `n`."""
        return {"mean": self.mean, "ci95": None if math.isnan(self.half) else self.half, "n": self.count}


def metric(metrics: Mapping[str, Any], name: str, setting: str) -> float:
    """One of an evaluation's metrics, by its name. Raises ConfigError that says which setting named it, and what there
    is.
    """
    if name not in metrics:
        known = ", ".join(key for key in metrics if key.startswith("eval/"))
        raise ConfigError(f"{setting}: evaluation has no metric {name!r}; it has: {known}.")
    return float(metrics[name])


def mean(values: Sequence[float] | Floats) -> Estimate:
    """The mean of independent values, NaNs left out, with Student's interval."""
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    if not array.size:
        return Estimate(math.nan, math.nan, 0)
    error = array.std(ddof=1) / math.sqrt(array.size) if array.size > 1 else math.nan
    return Estimate(float(array.mean()), float(_quantile(array.size) * error), array.size)


def per_token(values_R: Sequence[Floats]) -> Estimate:
    """The mean over all tokens of all responses. Tokens of one response depend on each other, so the interval treats
    responses as the independent values: the variance of a ratio of sums (Cochran, Sampling Techniques, eq. 6.13).
    """
    sums = np.array([v.sum() for v in values_R])
    counts = np.array([len(v) for v in values_R], dtype=np.float64)
    n = len(values_R)
    if not n or not counts.sum():
        return Estimate(math.nan, math.nan, 0)
    ratio = float(sums.sum() / counts.sum())
    if n == 1:
        return Estimate(ratio, math.nan, 1)
    error = math.sqrt(float(((sums - ratio * counts) ** 2).sum()) * n / (n - 1)) / float(counts.sum())
    return Estimate(ratio, _quantile(n) * error, n)


def _quantile(count: int) -> float:
    return _T95[count - 2] if count - 2 < len(_T95) else 1.96


def one_sided(count: int) -> float:
    """What half the width of a 95 % interval of `count` values is multiplied by for a one-sided bound at 95 %."""
    return (_T90[count - 2] if count - 2 < len(_T90) else 1.645) / _quantile(count)
