"""The conversations of a chunk: what the model says is read, its tools run, and what they return is what it reads next.

The meaning of TRL's GRPOTrainer: a conversation goes on while the model calls tools, at most
`max_tool_calling_iterations` times; results that would leave no room within `max_completion_length` (or the model's
context) are dropped, and it ends there. What an environment says at the beginning may leave less room than that: then
the conversation goes on with what is left, and has one turn, without a word, where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from ..engines.base import Completion, Conversation, Generator, OnCompletions, Prompt, Sampling, Schemas
from ..engines.tokenization import Texts
from ..engines.tool_calls import Turn
from ..errors import DataError
from ..tools.pool import ToolPool
from ..tools.results import Outcome, ToolResult
from .chunks import ChunkTask


@dataclass
class _Row:
    """A conversation so far. `begin`: where the last turn begins among the tokens behind the prompt."""

    key: int
    prompt: Prompt
    tools: Schemas
    messages: list[dict[str, Any]] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    rounds: int = 0
    calls: int = 0
    failures: int = 0
    malformed: int = 0
    no_room: bool = False
    turn: Turn | None = None
    running: Future[list[ToolResult]] | None = None
    outcome: Future[Outcome] | None = None

    @property
    def begin(self) -> int:
        return len(self.mask)


class Conversations:
    """Of the rows of a task; those behind them (unscored samples) have one turn. `task` is left to decode: without rows
    that are `over` before their first turn, and with prompts that have what environments say first. Raises RewardError
    for an environment that fails.
    """

    def __init__(self, texts: Texts, task: ChunkTask, pool: ToolPool) -> None:
        assert task.context is not None
        assert task.context.tools is not None
        self.texts, self.pool, self.context = texts, pool, task.context
        self.limit, self.keeps = task.sampling.max_completion_length, task.context.keeps_environments
        tools, batch = task.context.tools, task.context.batch
        begun = []
        for row, prompt, seed in zip(task.rows, task.prompts, task.episode_seeds, strict=False):
            number = row // task.context.num_generations
            columns = {name: values[number] for name, values in batch.columns.items()}
            name = tools.environment_of(columns)
            reset = {"prompt": prompt.content, **columns}
            if tools.by_row:
                del reset["environment"]
            key, told = pool.start(name, reset, seed)
            begun.append((key, prompt, tools.schemas[name], told))
        rows = [self._row(key, prompt, pool.result(told), schemas) for key, prompt, schemas, told in begun]
        prompts = [*(row.prompt for row in rows), *task.prompts[len(rows) :]]
        self._numbers = [n for n in range(len(prompts)) if n >= len(rows) or not rows[n].no_room]
        self.task = replace(task, prompts=tuple(prompts)).only(self._numbers)
        self.rows = [rows[n] for n in self._numbers if n < len(rows)]
        self.over = {n: self._silent(row, task.sampling) for n, row in enumerate(rows) if row.no_room}

    def _row(self, key: int, prompt: Prompt, observation: str | None, tools: Schemas) -> _Row:
        """With what the environment said at the end of the prompt's last message, as in TRL."""
        if observation is None:
            return _Row(key, prompt, tools)
        *before, last = prompt.content
        content = [*before, {**last, "content": (last.get("content") or "") + observation}]
        told = self.texts.encode_told(content, tools)
        return _Row(key, told or Prompt(content, ()), tools, no_room=told is None)

    def _silent(self, r: _Row, sampling: Sampling) -> Completion:
        r.messages.append({"role": "assistant", "content": ""})
        self._end(r)
        empty = self.texts.completion(
            [], [] if sampling.logprobs else None, kl_uniform=[] if sampling.kl_uniform else None
        )
        return self._finished(r, empty)

    def fitting(self, generator: Generator) -> ChunkTask:
        """The task with fewer rows at once where environments say more than the dataset's prompts: keys and values of
        prompts of that length, and of `max_completion_length` tokens, are what memory was planned for.
        """
        sampling = self.task.sampling
        if sampling.rows_at_once is None or not self.task.prompts:
            return self.task
        planned, told = (
            max(len(prompt.ids) for prompt in prompts) for prompts in (self.context.batch.prompts, self.task.prompts)
        )
        widest = told + self.texts.room(told, self.limit)
        rows = generator.fewer_rows(sampling.rows_at_once, widest, planned + self.limit)
        return replace(self.task, sampling=replace(sampling, rows_at_once=rows))

    # --- turns, as the engine asks for them ---------------------------------------------------------------------------

    def ended(self, row: int, ids: Sequence[int], *, stopped: bool) -> bool:
        if row >= len(self.rows):
            return False
        r = self.rows[row]
        new, r.ids = ids[r.begin :], list(ids)
        cut = not stopped and (not new or new[-1] not in self.texts.stops)
        r.turn = self.texts.tool_turns.parse(new, (*r.prompt.ids, *ids[: r.begin]), r.tools)
        r.mask += [1] * len(new)
        r.messages.append(r.turn.message)
        r.malformed += r.turn.malformed
        most = self.context.max_tool_calling_iterations
        if cut or not r.turn.calls or (most is not None and r.rounds >= most):
            self._end(r)
            return False
        r.running = self.pool.call(r.key, r.turn.calls)
        return True

    def resume(self, row: int) -> Sequence[int] | None:
        r = self.rows[row]
        assert r.running is not None
        assert r.turn is not None
        results: list[ToolResult] = self.pool.result(r.running)
        r.rounds, r.running = r.rounds + 1, None
        r.calls, r.failures = r.calls + len(results), r.failures + sum(result.failed for result in results)
        messages = [result.message for result in results]
        more = self._suffix(r, messages)
        if more is None or not self._fits(r, len(more)):
            r.no_room = more is not None
            self._end(r)
            return None
        r.messages += messages
        r.mask += [0] * len(more)
        r.ids += more
        return more

    def _suffix(self, r: _Row, messages: Sequence[Mapping[str, Any]]) -> list[int] | None:
        """What the model reads next; None: the template refuses it."""
        assert r.turn is not None
        try:
            more = self.texts.tool_turns.suffix(r.turn, messages, r.tools)
        except DataError:  # of what the model wrote: a name or an argument that the template cannot render
            return None
        ended = bool(r.ids) and r.ids[-1] in self.texts.stops
        return more[1:] if ended and more and more[0] in self.texts.stops else more

    def _fits(self, r: _Row, more: int) -> bool:
        length, context = len(r.ids) + more, self.texts.context
        return length < self.limit and (context is None or len(r.prompt.ids) + length < context)

    def _end(self, r: _Row) -> None:
        r.outcome = self.pool.end(r.key, keep=self.keeps)

    # --- what comes out -----------------------------------------------------------------------------------------------

    def finished(self, completions: Mapping[int, Completion]) -> dict[int, Completion]:
        """Completions of rows of `task` with their conversations, by their number in the whole chunk. Raises
        RewardError.
        """
        return {
            self._numbers[n]: self._finished(self.rows[n], c) if n < len(self.rows) else c
            for n, c in completions.items()
        }

    def _finished(self, r: _Row, completion: Completion) -> Completion:
        assert r.outcome is not None
        outcome: Outcome = self.pool.result(r.outcome)
        return replace(
            completion,
            text=str(r.messages[-1]["content"]) if r.messages[-1]["role"] == "assistant" else "",
            mask=tuple(r.mask[: len(completion.ids)]),
            conversation=Conversation(
                r.prompt.content, tuple(r.messages), r.calls, r.failures, r.malformed, r.no_room, outcome.kind,
                outcome.reward, outcome.environment,
            ),
        )  # fmt: skip


def generate(generator: Generator, task: ChunkTask, pool: ToolPool | None, on_completions: OnCompletions) -> None:
    """Decode a chunk, by an engine whose members are set; in conversations, where its context has tools."""
    if pool is None:
        generator.generate(task.prompts, task.sampling, task.seed, on_completions)
        return
    turns = Conversations(generator.texts, task, pool)
    left = turns.fitting(generator)
    if turns.over:
        on_completions(turns.over)
        if not left.prompts:
            return
        generator.set_members(left.members)
    generator.converse(left.prompts, left.sampling, left.seed, lambda rows: on_completions(turns.finished(rows)), turns)
