"""The plan of a rollout: which rows are decoded together. It never depends on who decodes them.

A member completes each of its prompts `num_generations` times: row n of the rollout is sample n % num_generations of
prompt n // num_generations of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.prompts import PromptBatch
from ..engines.base import Prompt, Sampling, Seed
from ..es.population import Member
from ..noise import spec
from ..rewards.serialize import Functions
from ..tools.toolset import ToolSet


@dataclass(frozen=True)
class Chunk:
    """Rows that are decoded as a unit: row n is member number `members[n]` on row `rows[n]` of the rollout. `seeds` of
    the rows, where they draw by seeds of their own; else they draw by the chunk's `seed`.
    """

    members: tuple[int, ...]
    rows: tuple[int, ...]
    seed: int
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class EvalContext:
    """What the chunks of a rollout have in common: prompts, how to decode (unscored samples aside) and `trainer_state`.
    With `functions` (and their `timeout`, as `Scorer`'s) completions are scored where they are decoded. With `tools`
    completions are conversations; `keeps_environments`: reward functions want to see them.
    """

    batch: PromptBatch
    sampling: Sampling
    state: Mapping[str, Any]
    functions: Functions | None = None
    timeout: float = 0.0
    num_generations: int = 1
    tools: ToolSet | None = None
    max_tool_calling_iterations: int | None = None
    keeps_environments: bool = False
    tool_timeout: float = 0.0

    def prompts(self, rows: Sequence[int]) -> list[Prompt]:
        """The prompts of rows of the rollout."""
        return [self.batch.prompts[row // self.num_generations] for row in rows]


@dataclass(frozen=True)
class ChunkTask:
    """A chunk as an engine takes it: row n is `prompts[n]` for `members[n]`; it is row `rows[n]` of the rollout, or,
    behind the last of those, an unscored sample. `episode_seeds`: of the environments of its rows.
    """

    members: tuple[Member, ...]
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    seed: Seed
    rows: tuple[int, ...] = ()
    context: EvalContext | None = None
    episode_seeds: tuple[int, ...] = ()

    @property
    def reads(self) -> bool:
        """Whether the prompts' given completions are read; else completions are decoded."""
        return bool(self.prompts[0].given)

    def only(self, numbers: Sequence[int]) -> ChunkTask:
        """Some of its rows, by their number in it, in order."""
        first, scored = self.sampling.first_sampled_row, [n for n in numbers if n < len(self.rows)]
        return replace(
            self,
            members=tuple(self.members[n] for n in numbers),
            prompts=tuple(self.prompts[n] for n in numbers),
            sampling=replace(
                self.sampling, first_sampled_row=None if first is None else sum(n < first for n in numbers)
            ),
            seed=self.seed if isinstance(self.seed, int) else tuple(self.seed[n] for n in numbers),
            rows=tuple(self.rows[n] for n in scored),
            episode_seeds=tuple(self.episode_seeds[n] for n in scored),
        )


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


def episode_seeds(
    chunk: Chunk, members: Sequence[Member], batch: PromptBatch, num_generations: int, seed: int, iteration: int
) -> tuple[int, ...]:
    """Seeds of the environments of a chunk's rows: of the pair, the prompt and the sample, whatever the chunk, so that
    the two members of a pair meet the same.
    """
    pairs = np.array([members[m].pair for m in chunk.members])
    prompts = np.array([batch.indices[row // num_generations] for row in chunk.rows])
    samples = np.array([row % num_generations for row in chunk.rows])
    seeds_N_G = spec.sample_seeds(seed, iteration, pairs, prompts, num_generations)
    return tuple(seeds_N_G[np.arange(len(samples)), samples].tolist())


def with_samples(
    chunk: Chunk, members: Sequence[Member], batch: PromptBatch, num_generations: int, seed: int, iteration: int
) -> Chunk:
    """A chunk of prompts, as a chunk of the rows of all their samples, which stay together. Each row draws by a seed of
    its pair, prompt and sample, whatever the chunk.
    """
    pairs, prompts = [members[m].pair for m in chunk.members], [batch.indices[p] for p in chunk.rows]
    seeds_N_G = spec.sample_seeds(seed, iteration, np.array(pairs), np.array(prompts), num_generations)
    samples = range(num_generations)
    return Chunk(
        tuple(m for m in chunk.members for _ in samples),
        tuple(p * num_generations + g for p in chunk.rows for g in samples),
        chunk.seed,
        tuple(seeds_N_G.ravel().tolist()),
    )
