"""What crosses the network, packed: tokens and numbers, nothing twice; of texts only prompts that are scored where they
are answered. Between processes of one run.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle

from ..engines.base import Completion, Prompt, Sampling
from ..es.population import Population
from ..tasks.functions import Functions
from ..tasks.reward import Scores
from .plan import Asked, Questions, Work
from .rows import Part

#: A completion from what the model chose, and the log-probabilities of it: `Texts.completion`.
ToCompletion = Callable[[Sequence[int], Sequence[float] | None], Completion]


def pack(what: Any) -> bytes:
    """As bare deflate: a header and a checksum are six bytes, and messages are many and small."""
    return zlib.compress(cloudpickle.dumps(what, protocol=5), wbits=-zlib.MAX_WBITS)  # columns may hold user's classes


def unpack(data: bytes) -> Any:
    return pickle.loads(zlib.decompress(data, wbits=-zlib.MAX_WBITS))  # noqa: S301  # from a process of this run


def pack_asked(asked: Asked) -> bytes:
    """Prompts by their tokens; what only reward functions see when they are called there."""
    q = asked.questions
    seen = None
    if asked.functions is not None:
        seen = [p.content for p in q.prompts], dict(q.columns), dict(asked.state), asked.functions.key, asked.timeout
    return pack(([_numbers(p.ids) for p in q.prompts], dataclasses.astuple(asked.sampling), seen))


def unpack_asked(data: bytes, known: Mapping[str, Functions]) -> Asked:
    """`known`: the functions that were sent before, by their key."""
    tokens, sampling, seen = unpack(data)
    contents, columns, state, key, timeout = seen or ([""] * len(tokens), {}, {}, "", 0.0)
    prompts = tuple(Prompt(content, _tuple(ids)) for content, ids in zip(contents, tokens, strict=True))
    return Asked(Questions((), prompts, columns), Sampling(*sampling), state, known[key] if key else None, timeout)


def pack_work(work: Work) -> bytes:
    """Members by their index, prompts by their number among what is asked, or, each once, by their tokens."""
    beside = [p.ids for p in work.prompts[len(work.rows) :]]
    numbers = {ids: n for n, ids in enumerate(dict.fromkeys(beside))}
    iteration = next((m.iteration for m in work.members if m is not None), 0)
    return pack(
        (
            iteration,
            array("i", (-1 if m is None else m.index for m in work.members)).tobytes(),
            _numbers(work.rows),
            [_numbers(ids) for ids in numbers],
            _numbers([numbers[ids] for ids in beside]),
            None if work.asked and work.sampling == work.asked.sampling else dataclasses.astuple(work.sampling),
            work.seed,
        )
    )


def unpack_work(data: bytes, population: Population, asked: Asked | None) -> Work:
    iteration, who, numbers, beside, others, sampling, seed = unpack(data)
    members, rows = population.ask(iteration), _tuple(numbers)
    once = [Prompt("", _tuple(ids)) for ids in beside]
    questions = asked.questions.prompts if asked else ()
    return Work(
        tuple(None if n < 0 else members[n] for n in array("i", who)),
        (*(questions[n] for n in rows), *(once[n] for n in _tuple(others))),
        asked.sampling if asked and sampling is None else Sampling(*sampling),
        seed,
        rows,
        asked,
    )


def _numbers(numbers: Sequence[int]) -> bytes:
    """In one, two or four bytes each, as the largest needs; the first byte says which."""
    largest = max(numbers, default=0)
    kind = "B" if largest < 2**8 else "H" if largest < 2**16 else "I"
    return kind.encode() + array(kind, numbers).tobytes()


def _tuple(data: bytes) -> tuple[int, ...]:
    return tuple(array(chr(data[0]), data[1:]))


def pack_parts(parts: Sequence[Part]) -> Any:
    """Rows, lengths and tokens (with the one that ended a row), one after another; to be packed with the rest."""
    rows = [(row, completion) for part in parts for row, completion in part.rows.items()]
    chances = [c.logprobs for _, c in rows]
    return (
        _numbers([len(part.rows) for part in parts]),
        _numbers([row for row, _ in rows]),
        _numbers([len(c.chosen) for _, c in rows]),
        _numbers([token for _, c in rows for token in c.chosen]),
        None if None in chances else [array("d", c or ()).tobytes() for c in chances],
        [None if part.scores is None else [_pack_scores(s) for s in part.scores] for part in parts],
    )


def unpack_parts(packed: Any, to_completion: ToCompletion) -> list[Part]:
    """`to_completion` makes the texts anew."""
    sizes, rows, lengths, tokens = map(_tuple, packed[:4])
    chances, scores = packed[4:]
    completions, start = [], 0
    for n, length in enumerate(lengths):
        said = None if chances is None else array("d", chances[n]).tolist()
        completions.append(to_completion(tokens[start : start + length], said))
        start += length
    pairs = iter(zip(rows, completions, strict=True))
    return [
        Part(dict(next(pairs) for _ in range(size)), None if said is None else [_unpack_scores(s) for s in said])
        for size, said in zip(sizes, scores, strict=True)
    ]


def _pack_scores(scores: Scores) -> Any:
    """Eight bytes a completion; NaN is no reward, so it stands for None."""
    rewards = array("d", (math.nan if reward is None else reward for reward in scores.rewards))
    return rewards.tobytes(), scores.extra, scores.metrics


def _unpack_scores(packed: Any) -> Scores:
    rewards, extra, metrics = packed
    return Scores([None if math.isnan(reward) else reward for reward in array("d", rewards)], extra, metrics)
