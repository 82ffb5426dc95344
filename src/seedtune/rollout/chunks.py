"""The plan of a rollout: which rows are decoded together. It never depends on who decodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.prompts import PromptBatch
from ..engines.base import Prompt, Sampling
from ..es.population import Member
from ..noise import spec
from ..rewards.serialize import Functions


@dataclass(frozen=True)
class Chunk:
    """Rows that are decoded as a unit: row n is member number `members[n]` on prompt `rows[n]` of the batch."""

    members: tuple[int, ...]
    rows: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class EvalContext:
    """What the chunks of a rollout have in common: prompts, how to decode (unscored samples aside) and `trainer_state`.
    With `functions` (and their `timeout`, as `Scorer`'s) completions are scored where they are decoded.
    """

    batch: PromptBatch
    sampling: Sampling
    state: Mapping[str, Any]
    functions: Functions | None = None
    timeout: float = 0.0


@dataclass(frozen=True)
class ChunkTask:
    """A chunk as an engine takes it: row n is `prompts[n]` for `members[n]`; it is prompt `rows[n]` of the context's
    batch, or, behind the last of those, an unscored sample.
    """

    members: tuple[Member, ...]
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    seed: int
    rows: tuple[int, ...] = ()
    context: EvalContext | None = None

    @property
    def reads(self) -> bool:
        """Whether the prompts' given completions are read; else completions are decoded."""
        return bool(self.prompts[0].given)


def make_chunks(
    assignment: Sequence[Sequence[int]],
    batch: PromptBatch,
    chunk_size: int,
    seed: int,
    iteration: int,
    *,
    mixed: bool = False,
) -> list[Chunk]:
    """Chunks of at most `chunk_size` rows; prompts by length, longest first, so that little is padding. Member n
    answers the prompts `assignment[n]` of the batch, all members equally many.

    A chunk is of one member; `mixed`: chunks hold the rows of several, whole members in pairs, where they fit.
    """
    order = sorted(range(len(batch.prompts)), key=lambda n: (-batch.prompts[n].num_tokens, n))
    place = {row: n for n, row in enumerate(order)}
    own = [sorted(rows, key=place.__getitem__) for rows in assignment]
    members, size = range(len(own)), len(own[0])
    if mixed and size > chunk_size:  # a member fills chunks by itself: go prompt by prompt, to pad little
        lists = [sorted(((m, row) for m in members for row in own[m]), key=lambda place_of: place[place_of[1]])]
    elif mixed:
        together = chunk_size // size
        together -= together % 2 if together > 1 else 0
        groups = [members[m : m + together] for m in range(0, len(own), together)]
        lists = [[(m, row) for m in group for row in own[m]] for group in groups]
    else:
        lists = [[(m, row) for row in own[m]] for m in members]
    chunks: list[Chunk] = []
    for pairs in lists:
        for i in range(0, len(pairs), chunk_size):
            who, rows = zip(*pairs[i : i + chunk_size], strict=True)
            low, high, *_ = spec.derived_words(seed, spec.Tag.SAMPLING, iteration, len(chunks))
            chunks.append(Chunk(who, rows, seed=(high << 32 | low) >> 1))
    return chunks
