"""Rewards to fitness: from rewards_M_P [members, prompts] (NaN: left out) to fitness_M [members].

Arithmetic is float64 on the host that drives the run; the result is journaled, so replay never repeats it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .reliability import odd_effects

Floats = NDArray[np.float64]


class DegenerateRewardsWarning(UserWarning):
    """All members earned the same, so this iteration says nothing about which way to go."""


def member_rewards(rewards_M_P: Floats) -> Floats:
    """R_n: a member's mean over the prompts that were scored; NaN where none was."""
    counts = np.sum(~np.isnan(rewards_M_P), axis=1)
    sums: Floats = np.nansum(rewards_M_P, axis=1)
    means: Floats = sums / np.maximum(counts, 1)
    means[counts == 0] = np.nan
    return means


def prompt_rewards(rewards_M_P: Floats) -> Floats:
    """Each prompt's mean over the members that were scored on it; NaN where none was."""
    return member_rewards(rewards_M_P.T)


def zscore(rewards_M_P: Floats) -> Floats:
    """Z_n = (R_n - mean) / (std + 1e-8), population standard deviation. Qiu et al., Algorithm 2, line "normalize"."""
    r = member_rewards(rewards_M_P)
    return np.asarray((r - np.nanmean(r)) / (np.nanstd(r) + 1e-8), dtype=np.float64)


def centered_rank(rewards_M_P: Floats) -> Floats:
    """Ranks mapped to [-1/2, 1/2], ties sharing their mean rank. Salimans et al., arXiv 1703.03864, section 2."""
    r = member_rewards(rewards_M_P)
    seen = ~np.isnan(r)
    out = np.full_like(r, np.nan)
    values = r[seen]
    below = np.sum(values[None, :] < values[:, None], axis=1)
    equal = np.sum(values[None, :] == values[:, None], axis=1)
    out[seen] = (below + (equal - 1) / 2) / max(len(values) - 1, 1) - 0.5
    return out


def to_sum(rewards_M_P: Floats) -> Floats:
    """R_n / sum of R: [20, 10, 6, 4] becomes [0.5, 0.25, 0.15, 0.1]. For rewards that are never negative.

    Raises ValueError on a negative reward.
    """
    r = member_rewards(rewards_M_P)
    if np.nanmin(r) < 0:
        raise ValueError("fitness_shaping 'sum' needs rewards that are never negative; use 'zscore'")
    return np.asarray(r / np.nansum(r), dtype=np.float64)


def group(rewards_M_P: Floats) -> Floats:
    """Reward minus its prompt's mean over members, over the global deviation, averaged over prompts.

    EGGROLL (Sarkar et al., arXiv 2511.16652). Easy and hard prompts weigh the same.
    """
    counts = np.maximum(np.sum(~np.isnan(rewards_M_P), axis=0, keepdims=True), 1)
    centered = rewards_M_P - np.nansum(rewards_M_P, axis=0, keepdims=True) / counts
    return member_rewards(centered) / (np.nanstd(rewards_M_P) + 1e-8)


def pairs(rewards_M_P: Floats) -> Floats:
    """D_k / sqrt(mean of D^2) for the first of a pair, and minus that for the second, where D_k is half the mean
    difference of the pair's rewards over the prompts that both were scored on. What a pair has in common (easy prompts,
    reward lost by noise alone) cancels, and steps do not shrink when pairs agree. Members alternate +, -.
    """
    differences = np.repeat(member_rewards(odd_effects(rewards_M_P)), 2)
    differences[1::2] *= -1
    return np.asarray(differences / np.sqrt(np.nanmean(differences**2)), dtype=np.float64)


def none(rewards_M_P: Floats) -> Floats:
    """R_n itself, as in Algorithm 1 without normalization."""
    return member_rewards(rewards_M_P)


SHAPINGS: dict[str, Callable[[Floats], Floats]] = {
    "zscore": zscore,
    "centered_rank": centered_rank,
    "sum": to_sum,
    "group": group,
    "none": none,
    "pairs": pairs,
}

#: Shapings under which members may be asked different prompts: they compare within a prompt.
WITHIN_PROMPTS = ("group", "pairs")


def shape(rewards_M_P: Floats, shaping: str) -> Floats:
    """Fitness [members]. Members that nothing scored get 0, and so does everyone when all earned the same (with a
    `DegenerateRewardsWarning`): dividing by nearly nothing would turn rounding into a direction.
    """
    r = member_rewards(rewards_M_P)
    scored = r[~np.isnan(r)]
    if shaping == "pairs":
        nothing_differs = not np.nansum(np.abs(member_rewards(odd_effects(rewards_M_P))))
    else:
        nothing_differs = all_equal(rewards_M_P if shaping == "group" else scored)
    if len(scored) < 2 or nothing_differs:
        what = "no two members were scored" if len(scored) < 2 else "all members earned the same reward"
        warnings.warn(f"{what}: the weights stay as they are this iteration", DegenerateRewardsWarning, stacklevel=2)
        return np.zeros(len(r))
    return np.nan_to_num(SHAPINGS[shaping](rewards_M_P), nan=0.0)


def all_equal(rewards: Floats) -> bool:
    """Whether rewards (in each column, if there are columns) differ by no more than summation rounds."""
    columns = rewards[:, None] if rewards.ndim == 1 else rewards
    for column in columns.T:
        seen = column[~np.isnan(column)]
        if len(seen) and np.ptp(seen) > 8 * math.ulp(float(np.max(np.abs(seen)))):
            return False
    return True
