"""The plan of an iteration: which rows are decoded together. It never depends on who decodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..engines.base import Prompt
from ..es.population import Member
from ..noise import spec


@dataclass(frozen=True)
class Questions:
    """The prompts of an iteration, with their index in the dataset and their columns (one value a prompt)."""

    indices: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    columns: Mapping[str, list[Any]]


@dataclass(frozen=True)
class Chunk:
    """Rows that one member (None: the centre) answers in one batch. `rows` are positions in the questions."""

    member: Member | None
    rows: tuple[int, ...]
    seed: int


def cut(
    members: Sequence[Member | None], questions: Questions, rows_at_once: int, seed: int, iteration: int
) -> list[Chunk]:
    """Chunks member by member; a member's prompts are sorted by length, longest first, so that little is padding."""
    order = sorted(range(len(questions.prompts)), key=lambda n: (-len(questions.prompts[n].ids), n))
    parts = [tuple(order[i : i + rows_at_once]) for i in range(0, len(order), rows_at_once)]
    chunks = []
    for number, member in enumerate(members):
        for part, rows in enumerate(parts):
            low, high, *_ = spec.derived_words(seed, spec.Tag.SAMPLING, iteration, number, part)
            chunks.append(Chunk(member, rows, seed=(high << 32 | low) >> 1))
    return chunks


_shuffled = lru_cache(maxsize=2)(spec.permutation)


def draw(seed: int, iteration: int, count: int | None, size: int) -> list[int]:
    """The prompts of iteration 1, 2, ...: the next `count` through a new shuffle each epoch; None: all of them."""
    if count is None:
        return list(range(size))
    first = (iteration - 1) * count
    return [int(_shuffled(seed, n // size, size)[n % size]) for n in range(first, first + count)]
