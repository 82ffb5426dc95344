"""Is the reward being hacked? It may be when it rises while a gold metric falls or stays at its least, or while
different prompts get the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..rewards.equivalence.exact import normalize
from .diversity import answers
from .statistics import mean

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Finding:
    """A gold metric that fell while the reward rose; means over the prompts that both evaluations scored."""

    gold_metric: str
    reward_before: float
    reward_after: float
    gold_before: float
    gold_after: float

    def __str__(self) -> str:
        how = f"fell from {self.gold_before:.3g} to {self.gold_after:.3g}"
        if self.gold_after == self.gold_before:
            how = f"stayed at {self.gold_after:.3g} for every prompt"
        return (
            f"the reward may be hacked: it rose from {self.reward_before:.3g} to {self.reward_after:.3g}, while "
            f"{self.gold_metric} {how}"
        )


@dataclass(frozen=True)
class SameAnswers:
    """One text that answers `count` of `prompts` different prompts, though fewer than half had one answer before."""

    text: str
    count: int
    prompts: int

    def __str__(self) -> str:
        return f"{self.count} of {self.prompts} different prompts get the same answer: {self.text[:80]!r}"


#: Share of prompts with one answer from which that is reported, and the number of prompts that it takes.
_SAME, _ENOUGH = 0.75, 4


def same_answers(before: Rows, after: Rows, columns: Mapping[str, Sequence[Any]] | None = None) -> list[SameAnswers]:
    """Whether most of the different prompts get one answer that did not before; answers are compared after
    normalization, so that `Yes.` is `yes`. Not where a column of the dataset (`columns`: a value per prompt) has that
    answer for as large a share of prompts: then it may be right.
    """

    def most_common(rows: Rows) -> tuple[str, int, int]:
        given = [normalize(text) for text in answers(rows).values()]
        text, count = Counter(given).most_common(1)[0] if given else ("", 0)
        return text, count, len(given)

    text, count, prompts = most_common(after)
    _, count_before, prompts_before = most_common(before)
    if prompts < _ENOUGH or count < _SAME * prompts or count_before >= 0.5 * max(prompts_before, 1):
        return []
    for values in (columns or {}).values() if text else ():
        if sum(normalize(str(value)) == text for value in values) >= _SAME * len(values):
            return []
    first = next(given for given in answers(after).values() if normalize(given) == text)
    return [SameAnswers(first, count, prompts)]


def hacking(before: Rows, after: Rows, gold_metrics: Sequence[str]) -> list[Finding]:
    """Gold metrics that are lower than before by more than chance explains (the 95 % interval of the change per prompt
    lies below 0) while the reward rose; and those that are one and the same for every prompt, before and after, while
    the reward rose by more than chance explains. Rows are those of `completions/eval-*.jsonl`, in the same order, with
    one column per gold metric.
    """
    found = []
    for metric in gold_metrics:
        pairs = [
            (a["reward"], b["reward"], a[metric], b[metric])
            for a, b in zip(before, after, strict=False)
            if None not in (a.get("reward"), b.get("reward"), a.get(metric), b.get(metric))
        ]
        if not pairs:
            continue
        old, new, gold_old, gold_new = np.array(pairs, dtype=np.float64).T
        fall, rise = mean(gold_new - gold_old), mean(new - old)
        fell = fall.count > 1 and fall.mean + fall.half < 0 and rise.mean > 0
        stuck = rise.count > 1 and rise.mean - rise.half > 0 and np.ptp([gold_old, gold_new]) == 0 and gold_new[0] <= 0
        if fell or stuck:
            found.append(Finding(metric, *(float(x.mean()) for x in (old, new, gold_old, gold_new))))
    return found
