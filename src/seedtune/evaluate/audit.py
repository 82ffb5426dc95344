"""Is the reward being hacked? It is when what is optimised rises while what is meant falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .score import mean

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Finding:
    """A truth that fell while the reward rose; means over the prompts that both evaluations scored."""

    truth: str
    reward_before: float
    reward_after: float
    truth_before: float
    truth_after: float

    def __str__(self) -> str:
        return (
            f"the reward may be hacked: it rose from {self.reward_before:.3g} to {self.reward_after:.3g}, while "
            f"{self.truth} fell from {self.truth_before:.3g} to {self.truth_after:.3g}"
        )


def hacking(before: Rows, after: Rows, truths: Sequence[str]) -> list[Finding]:
    """Truths that are lower than before by more than chance explains: prompt by prompt, the 95 % interval of the change
    lies below 0. Rows are those of `completions/eval-*.jsonl`, in the same order, with one column a truth.
    """
    found = []
    for truth in truths:
        pairs = [
            (a["reward"], b["reward"], a[truth], b[truth])
            for a, b in zip(before, after, strict=False)
            if None not in (a.get("reward"), b.get("reward"), a.get(truth), b.get(truth))
        ]
        if not pairs:
            continue
        old, new, true_old, true_new = np.array(pairs, dtype=np.float64).T
        fall = mean(true_new - true_old)
        certain = fall.count > 1 and fall.mean + fall.half < 0
        if certain and new.mean() > old.mean():
            found.append(Finding(truth, *(float(x.mean()) for x in (old, new, true_old, true_new))))
    return found
