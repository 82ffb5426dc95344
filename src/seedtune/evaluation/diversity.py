"""How different the answers to different prompts are. A model that says the same to all of them is certain, and of no
use: a reward for confidence may bring that about.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..rewards.answers import ANSWER
from ..rewards.equivalence.exact import normalize
from ..rewards.function import Reward

Rows = Sequence[Mapping[str, Any]]


def answers(rows: Rows) -> dict[str, str]:
    """The answer to each different prompt: of several completions the commonest. An answer is what a confidence reward
    has read (the column `answer`), else the completion. `rows` are those of `completions/`, of one member.
    """
    given: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        key = json.dumps(row.get("prompt"), sort_keys=True, default=str)
        given[key].append(str(row["completion"] if row.get(ANSWER) is None else row[ANSWER]))
    return {prompt: Counter(some).most_common(1)[0][0] for prompt, some in given.items()}


def diversity(rows: Rows) -> float | None:
    """Different answers per prompt, from near 0 to 1, after normalization: the mean over members that have answered two
    different prompts or more; None: there are none.
    """
    of_member: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        of_member[row.get("member")].append(row)
    found = [given for some in of_member.values() if len(given := answers(some)) > 1]
    shares = [len({normalize(text) for text in given.values()}) / len(given) for given in found]
    return sum(shares) / len(shares) if shares else None


def diversity_metrics(rows: Rows, rewards: Sequence[Reward]) -> dict[str, float]:
    """`completions/diversity`, where a reward can be earned by giving the same answer to all prompts."""
    share = diversity(rows) if any(reward.is_confidence for reward in rewards) else None
    return {} if share is None else {"completions/diversity": share}
