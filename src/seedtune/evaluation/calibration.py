"""Do confidences agree with how often answers are right? From what calibration rewards log with completions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..rewards.calibration import CONFIDENCE, CORRECT
from . import statistics
from .statistics import Estimate, Floats

#: Bins of confidences, of equal width.
BINS = 10


def calibration_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Where a calibration reward was called: `calibration/accuracy` (answers that are right) and `calibration/stated`
    (completions that have a confidence), and of those that have one `calibration/brier`, the mean of (q - y)^2, and
    `calibration/expected_calibration_error`. `rows` are those of `completions/`.
    """
    known = [row for row in rows if row.get(CORRECT) is not None]
    if not known:
        return {}
    y = np.array([row[CORRECT] for row in known], dtype=np.float64)
    q = np.array([math.nan if row[CONFIDENCE] is None else row[CONFIDENCE] for row in known], dtype=np.float64)
    stated = ~np.isnan(q)
    found = {"accuracy": statistics.mean(y), "stated": statistics.mean(stated.astype(np.float64))}
    if stated.any():
        found["brier"] = statistics.mean((q[stated] - y[stated]) ** 2)
        error = expected_calibration_error(q[stated], y[stated])
        found["expected_calibration_error"] = Estimate(error, math.nan, int(stated.sum()))
    return {f"calibration/{name}": estimate for name, estimate in found.items()}


def expected_calibration_error(confidences: Floats, correct: Floats, bins: int = BINS) -> float:
    """sum_b |b| / n |accuracy(b) - confidence(b)| over `bins` bins of equal width, ((b - 1) / bins, b / bins], of which
    the first has 0, too: Guo et al. (arXiv 1706.04599), eq. 3.
    """
    of_bin = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(of_bin, confidences - correct, minlength=bins)  # |b| times the difference of the means
    return float(np.abs(gaps).sum() / len(confidences))
