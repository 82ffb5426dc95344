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
    return zlib.compress(cloudpickle.dumps(what, protocol=5))  # columns may hold what the user's own code defines


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
            None if work.asked is None else _pack_asked(work.asked),
        )
    )


def unpack_work(data: bytes, population: Population, known: Mapping[str, Functions]) -> Work:
    """`known`: the functions that were sent before, by their key."""
    iteration, who, prompts, rows, sampling, seed, asked = unpack(data)
    members = population.ask(iteration)
    once = [Prompt("", tuple(array("I", ids))) for ids in prompts]
    row_prompts = tuple(once[n] for n in array("I", rows))
    return Work(
        tuple(None if n < 0 else members[n] for n in array("i", who)),
        row_prompts,
        Sampling(*sampling),
        seed,
        None if asked is None else _unpack_asked(asked, row_prompts, known),
    )


def _pack_asked(asked: Asked) -> Any:
    """Tokens are left out: the rows of the work have them."""
    q = asked.questions
    numbers = array("I", q.indices).tobytes(), array("I", asked.rows).tobytes()
    return asked.functions.key, asked.timeout, [p.content for p in q.prompts], q.columns, dict(asked.state), *numbers


def _unpack_asked(packed: Any, prompts: Sequence[Prompt], known: Mapping[str, Functions]) -> Asked:
    key, timeout, contents, columns, state, indices, numbers = packed
    rows = tuple(array("I", numbers))
    tokens = {n: prompt.ids for n, prompt in zip(rows, prompts, strict=False)}
    asked = tuple(Prompt(content, tokens[n]) for n, content in enumerate(contents))
    return Asked(known[key], timeout, Questions(tuple(array("I", indices)), asked, columns), rows, state)


def pack_parts(parts: Sequence[Part]) -> Any:
    """Rows, lengths and tokens (with the one that ended a row), one after another; to be packed with the rest."""
    rows = [(row, completion) for part in parts for row, completion in part.rows.items()]
    chances = [c.logprobs for _, c in rows]
    return (
        array("I", (len(part.rows) for part in parts)).tobytes(),
        array("I", (row for row, _ in rows)).tobytes(),
        array("I", (len(c.chosen) for _, c in rows)).tobytes(),
        array("I", (token for _, c in rows for token in c.chosen)).tobytes(),
        None if None in chances else [array("d", c or ()).tobytes() for c in chances],
        [None if part.scores is None else [_pack_scores(s) for s in part.scores] for part in parts],
    )


def unpack_parts(packed: Any, to_completion: ToCompletion) -> list[Part]:
    """`to_completion` makes the texts anew."""
    sizes, rows, lengths, tokens = (array("I", part) for part in packed[:4])
    chances, scores = packed[4:]
    completions, start = [], 0
    for n, length in enumerate(lengths):
        said = None if chances is None else array("d", chances[n]).tolist()
        completions.append(to_completion(tokens[start : start + length].tolist(), said))
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
