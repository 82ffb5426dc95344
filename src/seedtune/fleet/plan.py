"""The plan of an iteration: which rows are decoded together. It never depends on who decodes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..engines.base import Prompt, Sampling
from ..es.population import Member
from ..noise import spec
from ..tasks.functions import Functions


@dataclass(frozen=True)
class Questions:
    """The prompts of an iteration, with their index in the dataset and their columns (one value a prompt)."""

    indices: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    columns: Mapping[str, list[Any]]


@dataclass(frozen=True)
class Chunk:
    """Rows that are decoded as a unit: row n is member `members[n]` (a position; None's is 0) on question `rows[n]`."""

    members: tuple[int, ...]
    rows: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Asked:
    """What the chunks of an evaluation have in common: questions, how to decode (but where responses ride along) and
    `trainer_state`. With `functions` (and their `timeout`, as `Scorer`'s) completions are scored where they are made.
    """

    questions: Questions
    sampling: Sampling
    state: Mapping[str, Any]
    functions: Functions | None = None
    timeout: float = 0.0


@dataclass(frozen=True)
class Work:
    """A chunk as an engine takes it: row n is `prompts[n]`, answered by `members[n]`; it is number `rows[n]` of the
    questions that are `asked`, or none of them and not scored, behind the last of those.
    """

    members: tuple[Member | None, ...]
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    seed: int
    rows: tuple[int, ...] = ()
    asked: Asked | None = None


def cut(
    members: int, questions: Questions, chunk_size: int, seed: int, iteration: int, *, mixed: bool = False
) -> list[Chunk]:
    """Chunks of at most `chunk_size` rows; prompts go by length, longest first, so that little is padding.

    A chunk is of one member; `mixed`, chunks hold the rows of several: whole members, in pairs, where they fit.
    """
    order = sorted(range(len(questions.prompts)), key=lambda n: (-len(questions.prompts[n].ids), n))
    if mixed and len(order) > chunk_size:  # a member fills chunks by itself: go prompt by prompt, to pad little
        lists = [[(m, row) for row in order for m in range(members)]]
    elif mixed:
        together = chunk_size // len(order)
        together -= together % 2 if together > 1 else 0
        groups = [range(m, min(m + together, members)) for m in range(0, members, together)]
        lists = [[(m, row) for m in group for row in order] for group in groups]
    else:
        lists = [[(m, row) for row in order] for m in range(members)]
    chunks: list[Chunk] = []
    for pairs in lists:
        for i in range(0, len(pairs), chunk_size):
            who, rows = zip(*pairs[i : i + chunk_size], strict=True)
            low, high, *_ = spec.derived_words(seed, spec.Tag.SAMPLING, iteration, len(chunks))
            chunks.append(Chunk(who, rows, seed=(high << 32 | low) >> 1))
    return chunks


_shuffled = lru_cache(maxsize=2)(spec.permutation)


def draw(seed: int, iteration: int, count: int | None, size: int) -> list[int]:
    """The prompts of iteration 1, 2, ...: the next `count` through a new shuffle each epoch; None: all of them."""
    if count is None:
        return list(range(size))
    first = (iteration - 1) * count
    return [int(_shuffled(seed, n // size, size)[n % size]) for n in range(first, first + count)]
