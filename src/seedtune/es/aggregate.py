"""A member's completions of one prompt to one reward: from rewards_M_P_G [members, prompts, samples] (NaN: left out) to
rewards_M_P. What is left out takes no part; a prompt of which nothing is left is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

AGGREGATES = ("mean", "max", "pass_at_k", "majority")


def best_of_k(rewards_G: Floats, k: int) -> float:
    """The mean, over all ways to draw k of G samples, of the greatest reward drawn: an unbiased estimate of what the
    best of k earns. For rewards of 0 and 1 it is pass@k, 1 - C(n - c, k) / C(n, k) with c of n right (Chen et al.,
    arXiv 2107.03374, eq. 1); for others maxg@k (Walder and Karkhanis, arXiv 2505.15201). Raises ValueError for k > G.
    """
    count = len(rewards_G)
    if not 1 <= k <= count:
        raise ValueError(f"the best of {k} needs at least {k} samples, and there are {count}")
    ordered = np.sort(rewards_G)
    # The greatest is beyond the n-th smallest unless all k are among the first n.
    beyond = [1.0 - math.comb(n, k) / math.comb(count, k) for n in range(1, count)]
    return float(ordered[0] + np.dot(np.diff(ordered), beyond))


def majority(rewards_G: Floats, answers_G: NDArray[np.int64]) -> float:
    """The mean reward of the samples that give the answer which most of them give; of several such, the first one's.
    Equal numbers stand for equal answers.
    """
    values, first, counts = np.unique(answers_G, return_index=True, return_counts=True)
    chosen = min(range(len(values)), key=lambda n: (-counts[n], first[n]))
    return float(rewards_G[answers_G == values[chosen]].mean())


@dataclass(frozen=True)
class Aggregate:
    """`how`: one of `AGGREGATES`; `k` is that of pass_at_k, which leaves a prompt out when fewer samples are known."""

    how: str = "mean"
    k: int = 1

    @property
    def needs_answers(self) -> bool:
        return self.how == "majority"

    def __call__(self, rewards_M_P_G: Floats, answers_M_P_G: NDArray[np.int64] | None = None) -> Floats:
        """rewards_M_P; `answers_M_P_G`, which majority needs, are numbers that are equal where answers are. One sample
        is its prompt's reward, to the bit.
        """
        if rewards_M_P_G.shape[2] == 1:
            return rewards_M_P_G[..., 0]
        out = np.full(rewards_M_P_G.shape[:2], np.nan)
        for m, p in np.ndindex(*out.shape):
            known = ~np.isnan(rewards_M_P_G[m, p])
            answers = None if answers_M_P_G is None else answers_M_P_G[m, p, known]
            if known.sum() >= (self.k if self.how == "pass_at_k" else 1):
                out[m, p] = self._one(rewards_M_P_G[m, p, known], answers)
        return out

    def _one(self, rewards_G: Floats, answers_G: NDArray[np.int64] | None) -> float:
        if self.how == "pass_at_k":
            return best_of_k(rewards_G, self.k)
        if self.how == "majority":
            assert answers_G is not None
            return majority(rewards_G, answers_G)
        return float(rewards_G.max() if self.how == "max" else rewards_G.mean())


#: The default.
MEAN = Aggregate()
