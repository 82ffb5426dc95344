"""What crosses the network, packed: tokens and numbers, nothing twice; of texts only prompts whose completions are
scored where they are decoded. Between processes of one run.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import cloudpickle

from ..data.prompts import PromptBatch
from ..engines.base import Completion, GivenText, Prompt, Sampling
from ..es.population import CENTER, Population
from ..rewards.call import Scores
from ..rewards.serialize import Functions
from ..rollout.chunks import ChunkTask, EvalContext
from ..rollout.collector import ChunkOutput
from ..rollout.reading import given_completion


class ToCompletion(Protocol):
    """A completion from what the model chose, and what was measured of it: `Texts.completion`."""

    def __call__(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float] | None = None,
        *,
        stopped: bool = False,
        kl_uniform: Sequence[float] | None = None,
        begin: int = 0,
    ) -> Completion: ...


def pack(what: Any) -> bytes:
    """As bare deflate: a header and a checksum are six bytes, and messages are many and small."""
    return zlib.compress(cloudpickle.dumps(what, protocol=5), wbits=-zlib.MAX_WBITS)  # columns may hold user's classes


def unpack(data: bytes) -> Any:
    return pickle.loads(zlib.decompress(data, wbits=-zlib.MAX_WBITS))  # noqa: S301  # from a process of this run


def pack_context(context: EvalContext) -> bytes:
    """Prompts by their tokens; and what reward functions see, where they are called there."""
    batch = context.batch
    seen, functions, talks = None, context.functions, None
    if functions is not None or context.tools is not None:
        contents, columns = [p.content for p in batch.prompts], dict(batch.columns)
        seen = contents, columns, context.state, functions.key if functions else "", context.timeout
    if context.tools is not None:
        talks = (
            context.tools, context.max_tool_calling_iterations, context.keeps_environments, context.tool_timeout
        )  # fmt: skip
    given = [[(text.content, _numbers(text.ids)) for text in p.given] for p in batch.prompts] if batch.reads else None
    tokens = [_numbers(p.ids) for p in batch.prompts]
    return pack((tokens, dataclasses.astuple(context.sampling), context.num_generations, seen, given, talks))


def unpack_context(data: bytes, known: Mapping[str, Functions]) -> EvalContext:
    """`known`: the functions that were sent before, by their key."""
    tokens, sampling, num_generations, seen, given, talks = unpack(data)
    contents, columns, state, key, timeout = seen or ([""] * len(tokens), {}, {}, "", 0.0)
    texts = [tuple(GivenText(text, "", _tuple(ids)) for text, ids in row) for row in given or [()] * len(tokens)]
    prompts = tuple(Prompt(c, _tuple(ids), row) for c, ids, row in zip(contents, tokens, texts, strict=True))
    functions = known[key] if key else None
    batch = PromptBatch((), prompts, columns)
    return EvalContext(batch, Sampling(*sampling), state, functions, timeout, num_generations, *(talks or ()))


def pack_task(task: ChunkTask) -> bytes:
    """Members by their index; prompts by their number in the context's batch, unscored ones by their tokens, once."""
    unscored = [p.ids for p in task.prompts[len(task.rows) :]]
    numbers = {ids: n for n, ids in enumerate(dict.fromkeys(unscored))}
    iteration = next((m.iteration for m in task.members if m != CENTER), 0)
    return pack(
        (
            iteration,
            array("i", (m.index for m in task.members)).tobytes(),
            _numbers(task.rows),
            [_numbers(ids) for ids in numbers],
            _numbers([numbers[ids] for ids in unscored]),
            None if task.context and task.sampling == task.context.sampling else dataclasses.astuple(task.sampling),
            task.seed if isinstance(task.seed, int) else array("q", task.seed).tobytes(),
            *([array("q", task.episode_seeds).tobytes()] if task.episode_seeds else ()),
        )
    )


def unpack_task(data: bytes, population: Population, context: EvalContext | None) -> ChunkTask:
    iteration, indices, numbers, unscored, places, sampling, seed, *episodes = unpack(data)
    members, rows = [*population.ask(iteration), CENTER], _tuple(numbers)
    once = [Prompt("", _tuple(ids)) for ids in unscored]
    return ChunkTask(
        tuple(members[n] for n in array("i", indices)),  # the center's index is -1
        (*(context.prompts(rows) if context else ()), *(once[n] for n in _tuple(places))),
        context.sampling if context and sampling is None else Sampling(*sampling),
        seed if isinstance(seed, int) else tuple(array("q", seed)),
        rows,
        context,
        tuple(array("q", episodes[0])) if episodes else (),
    )


def _numbers(numbers: Sequence[int]) -> bytes:
    """In one, two or four bytes each, as the largest needs; the first byte says which."""
    largest = max(numbers, default=0)
    kind = "B" if largest < 2**8 else "H" if largest < 2**16 else "I"
    return kind.encode() + array(kind, numbers).tobytes()


def _tuple(data: bytes) -> tuple[int, ...]:
    return tuple(array(chr(data[0]), data[1:]))


def pack_outputs(outputs: Sequence[ChunkOutput], *, tokens: bool = True) -> Any:
    """Rows, lengths and tokens (with the one that ended a row), one after another; to be packed with the rest. Without
    `tokens`, where the driver has them.
    """
    rows = [(row, completion) for output in outputs for row, completion in output.rows.items()]
    measured = ([c.logprobs for _, c in rows], [c.kl_uniform for _, c in rows])
    if not tokens:
        rows = [(row, Completion((), "", truncated=True)) for row, _ in rows]
    return (
        _numbers([len(output.rows) for output in outputs]),
        _numbers([row for row, _ in rows]),
        _numbers([len(c.chosen) for _, c in rows]),
        _numbers([token for _, c in rows for token in c.chosen]),
        _numbers([n for n, (_, c) in enumerate(rows) if c.stop is None and not c.truncated]),  # by a stop string
        [None if None in values else [array("d", v or ()).tobytes() for v in values] for values in measured],
        [None if output.scores is None else [_pack_scores(s) for s in output.scores] for output in outputs],
        *([[(c.conversation, c.text, c.mask) for _, c in rows]] if any(c.conversation for _, c in rows) else ()),
    )


def unpack_outputs(packed: Any, to_completion: ToCompletion, given: Sequence[Prompt] = ()) -> list[ChunkOutput]:
    """`to_completion` makes the texts anew; those of a chunk that was read are `given` with its prompts."""
    sizes, rows, lengths, tokens, stopped = map(_tuple, packed[:5])
    measured, scores, *talks = packed[5:]
    completions, start = [], 0
    for n, length in enumerate(lengths):
        logprobs, kl = (None if values is None else array("d", values[n]).tolist() for values in measured)
        if given:
            completions.append(given_completion(given[rows[n]], logprobs))
            continue
        chosen = tokens[start : start + length]
        talk, text, mask = talks[0][n] if talks else (None, "", None)
        begin = _last_turn(mask) if mask else 0
        made = to_completion(chosen, logprobs, stopped=n in stopped, kl_uniform=kl, begin=begin)
        completions.append(dataclasses.replace(made, conversation=talk, text=text, mask=mask) if talk else made)
        start += length
    pairs = iter(zip(rows, completions, strict=True))
    return [
        ChunkOutput(dict(next(pairs) for _ in range(size)), None if s is None else [_unpack_scores(x) for x in s])
        for size, s in zip(sizes, scores, strict=True)
    ]


def _last_turn(mask: Sequence[int]) -> int:
    """Where the model's last turn begins: behind the last token of a tool's result."""
    return max((n for n, own in enumerate(mask, 1) if not own), default=0)


def _pack_scores(scores: Scores) -> Any:
    """Eight bytes per completion; NaN is no reward, so it stands for None."""
    rewards = array("d", (math.nan if reward is None else reward for reward in scores.rewards))
    return rewards.tobytes(), scores.extra, scores.metrics


def _unpack_scores(packed: Any) -> Scores:
    rewards, extra, metrics = packed
    return Scores([None if math.isnan(reward) else reward for reward in array("d", rewards)], extra, metrics)
