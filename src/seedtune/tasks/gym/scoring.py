"""Answers to items of reasoning-gym, scored. It runs in a process with a limit (`utils.limited`)."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from .guard import DENSE, OWN, Entry, is_copy, refusal

#: Answers that nobody should get anything for. Those that copy the question, or repeat a word, are made for each item.
_JUNK = ("", "0", "1", "{}", "[]", "[[]]", "[{}]", "No", "Yes", "A", "?", "0" * 60, "00:00", "0 days, 00:00:00")
_MOST_LINES = 40


def load() -> None:
    """Import reasoning-gym. It prints, and some of what it needs warns."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import reasoning_gym  # noqa: F401


@lru_cache(maxsize=64)
def dataset(name: str, config: str) -> Any:
    """The dataset of that name, with the configuration that the JSON text says. Raises what reasoning-gym does."""
    load()
    from reasoning_gym.factory import create_dataset

    return create_dataset(name, **json.loads(config))


def raw_score(answer: str, entry: Entry, name: str, config: str) -> float:
    """What the scorer gives, within 0 and 1; the entry stays as it is. 0 where it raises."""
    try:
        if name in OWN:
            return OWN[name](answer, entry)
        changed = copy.deepcopy(dict(entry))  # some scorers write into it
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            given = float(dataset(name, config).score_answer(answer, changed))
    except Exception:  # of what a model wrote, a scorer may raise anything
        return 0.0
    return min(given, 1.0) if given > 0 else 0.0  # NaN is 0


def guarded_score(answer: str, entry: Entry, name: str, config: str) -> float:
    """As `raw_score`, behind the guard: 0 for what it refuses, and for parts that say nothing of the truth."""
    gold = str(entry["answer"])
    for text in dict.fromkeys((answer.strip(), answer.strip("\n"))):  # some answers begin or end with a space
        if refusal(text, gold, name) or is_copy(text, entry, name):
            continue
        score = raw_score(text, entry, name, config)
        if score >= 1.0 or name in DENSE:
            return score
    return 0.0


def junk_floor(entry: Entry, name: str, config: str) -> float:
    """The most that an answer of no worth earns: what is always the same, copies from the question, and the right
    answer with one word in place of all. Junk that scores full marks happens to be right.
    """
    if name not in DENSE:
        return 0.0
    scores = (guarded_score(answer, entry, name, config) for answer in _junk(entry))
    return max((score for score in scores if score < 1), default=0.0)


def _junk(entry: Entry) -> Iterator[str]:
    yield from _JUNK
    yield entry["question"]
    yield from examples_in(entry["question"])
    yield from [line.strip() for line in entry["question"].splitlines() if line.strip()][:_MOST_LINES]
    gold = str(entry["answer"])
    words = list(dict.fromkeys(re.findall(r"\w+", gold)))
    for word in words if len(words) <= 10 else [*words[:5], *words[-5:]]:
        yield re.sub(r"\w+", word, gold)


def examples_in(question: str) -> list[str]:
    """What a question shows as examples of an answer."""
    return [shown.strip(" .'\"`()") for shown in re.findall(r"(?i)(?:e\.g\.|example)[:,]?\s*(.+)", question)][:9]


def score(answer: str, entry: str, name: str, config: str, floor: float) -> float:
    """What an answer earns: its score above that of junk, so that junk earns nothing and the right answer 1. `entry`:
    the item, as JSON.
    """
    earned = guarded_score(answer, parsed(entry), name, config)
    return max(0.0, earned - floor) / (1 - floor)


@lru_cache(maxsize=4096)
def parsed(entry: str) -> Entry:
    """An item from JSON, which has no tuples: grids of ARC are such."""
    found: dict[str, Any] = json.loads(entry)
    grid = found["metadata"].get("output")
    if isinstance(grid, list) and all(isinstance(row, list) for row in grid):
        found["metadata"]["output"] = tuple(map(tuple, grid))
    return found
