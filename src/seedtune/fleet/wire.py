"""What crosses the network, packed: tokens and numbers, no texts, and nothing twice. Between processes of one run."""

from __future__ import annotations

import dataclasses
import pickle
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..engines.base import Completion, Prompt, Sampling
from ..es.population import Population
from .plan import Work

#: Rows of a chunk as they ended, group by group.
Groups = Sequence[Mapping[int, Completion]]
#: A completion from what the model chose, and the log-probabilities of it: `Texts.completion`.
ToCompletion = Callable[[Sequence[int], Sequence[float] | None], Completion]


def pack(what: Any) -> bytes:
    return zlib.compress(pickle.dumps(what, protocol=5))


def unpack(data: bytes) -> Any:
    return pickle.loads(zlib.decompress(data))  # noqa: S301  # from a process of this run


def pack_work(work: Work) -> bytes:
    """Members by their index, every prompt once, by its tokens."""
    numbers = {ids: n for n, ids in enumerate(dict.fromkeys(p.ids for p in work.prompts))}
    iteration = next((m.iteration for m in work.members if m is not None), 0)
    return pack(
        (
            iteration,
            array("i", (-1 if m is None else m.index for m in work.members)).tobytes(),
            [array("I", ids).tobytes() for ids in numbers],
            array("I", (numbers[p.ids] for p in work.prompts)).tobytes(),
            dataclasses.astuple(work.sampling),
            work.seed,
        )
    )


def unpack_work(data: bytes, population: Population) -> Work:
    iteration, who, prompts, rows, sampling, seed = unpack(data)
    members = population.ask(iteration)
    asked = [Prompt("", tuple(array("I", ids))) for ids in prompts]
    return Work(
        tuple(None if n < 0 else members[n] for n in array("i", who)),
        tuple(asked[n] for n in array("I", rows)),
        Sampling(*sampling),
        seed,
    )


def pack_groups(groups: Groups) -> Any:
    """Rows, lengths and tokens (with the one that ended a row), one after another; to be packed with the rest."""
    rows = [(row, completion) for group in groups for row, completion in group.items()]
    chances = [c.logprobs for _, c in rows]
    return (
        array("I", map(len, groups)).tobytes(),
        array("I", (row for row, _ in rows)).tobytes(),
        array("I", (len(c.chosen) for _, c in rows)).tobytes(),
        array("I", (token for _, c in rows for token in c.chosen)).tobytes(),
        None if None in chances else [array("d", c or ()).tobytes() for c in chances],
    )


def unpack_groups(packed: Any, to_completion: ToCompletion) -> list[dict[int, Completion]]:
    """`to_completion` makes the texts anew."""
    sizes, rows, lengths, tokens = (array("I", part) for part in packed[:4])
    chances = packed[4]
    completions, start = [], 0
    for n, length in enumerate(lengths):
        said = None if chances is None else array("d", chances[n]).tolist()
        completions.append(to_completion(tokens[start : start + length].tolist(), said))
        start += length
    pairs = iter(zip(rows, completions, strict=True))
    return [dict(next(pairs) for _ in range(size)) for size in sizes]
