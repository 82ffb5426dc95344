"""A rollout: every member completes its prompts, in the chunks of the plan, and rewards are computed meanwhile. An
executor has the chunks decoded, here or elsewhere; results do not depend on it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ..data.prompts import PromptBatch
from ..engines.base import Completion, Engine, Generator, Prompt, Sampling, TextScorer
from ..es.aggregate import MEAN, Aggregate
from ..es.population import CENTER, Member, assign_prompts
from ..rewards.function import Reward
from ..rewards.scorer import Scorer
from ..tools.pool import ToolPool
from ..tools.toolset import ToolSet
from .chunks import Chunk, ChunkTask, EvalContext, episode_seeds, make_chunks, with_samples
from .collector import ChunkOutput, RolloutCollector
from .conversations import generate
from .reading import read
from .rollout_func import RolloutFunc
from .rollouts import Clock, Rollouts

log = logging.getLogger(__name__)

#: Said once.
NO_ROOM = (
    "a conversation ended as no room was left: a tool's result did not fit max_completion_length, or what an "
    "environment said first left nothing of the model's context. It counts as it is (as in TRL, without the "
    "result); tools/no_room_frequency is the share of such conversations. Let tools and environments say less."
)
#: Rows done, rows in all, and new tokens since the last call.
OnRows = Callable[[int, int, int], None]
#: The number of a chunk, and rows of it that have ended.
OnChunkOutput = Callable[[int, ChunkOutput], None]
#: Whether a rollout may end without these chunks.
MayDrop = Callable[[set[int]], bool]


@dataclass(frozen=True)
class RolloutSpec:
    """How to decode, how many rows a chunk has at most (but the samples of a member for a prompt stay together), the
    run's seed, how many prompts a member answers (None: all of the batch), what reward functions are called with (see
    `RolloutCollector`), how many samples of each prompt a member draws, and how their rewards become one. With `tools`,
    completions are conversations, and `tool_timeout` is in seconds; `rollout_func`: they are the user's to make.
    """

    sampling: Sampling
    chunk_size: int
    seed: int
    prompts_per_member: int | None = None
    reward_batch: str = "any"
    num_generations: int = 1
    aggregate: Aggregate = MEAN
    tools: ToolSet | None = None
    max_tool_calling_iterations: int | None = None
    tool_timeout: float = 30.0
    reward_workers: int | None = None
    rollout_func: RolloutFunc | None = None


class Interrupted(Exception):
    """The user asked to stop before the iteration was finished. The center is as the last update left it."""


@dataclass
class UnscoredSamples:
    """Completions of the center that are drawn at temperature 1 and not scored. They are decoded with the last chunk of
    an evaluation of the center: a small batch costs almost as much as one twice as large.
    """

    prompts: Sequence[Prompt]
    completions: dict[int, Completion] = field(default_factory=dict)

    def take(self, ended: Mapping[int, Completion], first: int) -> dict[int, Completion]:
        """Keep those of the rows from `first` on; returns the others."""
        self.completions |= {n - first: completion for n, completion in ended.items() if n >= first}
        return {n: completion for n, completion in ended.items() if n < first}


@dataclass(frozen=True)
class RolloutJob:
    """Chunks to decode or to read, and what to call meanwhile: `on_chunk` after the last completions of each; `rewards`
    gives the functions that are called where chunks are read.
    """

    tasks: Sequence[ChunkTask]
    on_output: OnChunkOutput
    on_chunk: Callable[[], None]
    may_drop: MayDrop
    rewards: Callable[[], Sequence[Reward]] = tuple
    clock: Clock = field(default_factory=Clock)

    @property
    def work(self) -> str:
        """What its time is called: `generate`, or `forward` where texts are read."""
        return "forward" if self.tasks[0].reads else "generate"


class ChunkExecutor(Protocol):
    """Decodes chunks: one engine, or many replicas."""

    def execute(self, job: RolloutJob) -> set[int]:
        """Have every chunk decoded; returns the numbers of those that were dropped."""


class LocalExecutor:
    """A `ChunkExecutor` that decodes, or reads, one chunk after another on an engine."""

    def __init__(self, engine: Engine, spec: RolloutSpec | None = None) -> None:
        self.generator: Generator = engine
        self.reader: TextScorer = engine
        self.pool, self.rollout_func = None, spec and spec.rollout_func
        if spec is not None and spec.tools is not None:
            self.pool = ToolPool(spec.tools, workers=spec.reward_workers, timeout=spec.tool_timeout)

    def close(self) -> None:
        """End the processes that run tools; they start again when they are needed."""
        if self.pool:
            self.pool.close()

    def execute(self, job: RolloutJob) -> set[int]:
        for number, task in enumerate(job.tasks):

            def on_completions(rows: Mapping[int, Completion], number: int = number) -> None:
                job.on_output(number, ChunkOutput(rows))

            with job.clock.measure("perturb"):
                self.generator.set_members(task.members)
            with job.clock.measure(job.work):
                if task.reads:
                    read(self.reader, task, job.rewards(), partial(job.on_output, number))
                else:
                    if self.rollout_func:
                        self.rollout_func(self.generator, task, on_completions)
                    else:
                        generate(self.generator, task, self.pool, on_completions)
                job.on_chunk()
        with job.clock.measure("perturb"):
            self.generator.restore()
        return set()


class RolloutRunner:
    """Plans rollouts, has an executor decode them, and collects what comes back.

    `should_stop` is called while decoding; when it returns True, `Interrupted` is raised. `max_dropped_members` may be
    left out of an iteration, where there are slow replicas to leave behind.
    """

    def __init__(
        self, executor: ChunkExecutor, spec: RolloutSpec, *, mixes_members: bool, max_dropped_members: int = 0
    ) -> None:
        self.executor, self.spec, self.mixes_members = executor, spec, mixes_members
        self.max_dropped_members = max_dropped_members
        self.should_stop: Callable[[], bool] = lambda: False
        self._told_of_room = False

    def plan(self, members: Sequence[Member], batch: PromptBatch, iteration: int) -> list[Chunk]:
        """The chunks of a rollout."""
        spec, samples = self.spec, self.spec.num_generations
        assignment = assign_prompts(members, len(batch.prompts), spec.prompts_per_member)
        size = max(1, spec.chunk_size // samples)
        plan = make_chunks(assignment, batch, size, spec.seed, iteration, mixed=self.mixes_members)
        if samples == 1:
            return plan
        return [with_samples(chunk, members, batch, samples, spec.seed, iteration) for chunk in plan]

    def run(
        self,
        members: Sequence[Member],
        batch: PromptBatch,
        scorer: Scorer,
        iteration: int,
        state: Mapping[str, Any],
        on_rows: OnRows,
        unscored: UnscoredSamples | None = None,
    ) -> Rollouts:
        """Every member completes its prompts of the batch; completions are scored while others are decoded. Raises
        Interrupted when `should_stop` says so, and RewardError.
        """
        plan, asks = self.plan(members, batch, iteration), scorer.functions.asks
        collector = RolloutCollector(batch, scorer, state, plan, self.spec.reward_batch, self.spec.num_generations)
        functions = scorer.functions if scorer.on_replicas else None
        sampling = dataclasses.replace(
            self.spec.sampling, logprobs="completion_logprobs" in asks, kl_uniform="completion_kl_uniform" in asks
        )
        context = EvalContext(
            batch, sampling, state, functions, scorer.timeout, self.spec.num_generations, self.spec.tools,
            self.spec.max_tool_calling_iterations, "environments" in asks, self.spec.tool_timeout,
        )  # fmt: skip
        tasks = [_task(chunk, members, context, unscored if chunk is plan[-1] else None) for chunk in plan]
        if self.spec.tools is not None:
            about = members, batch, self.spec.num_generations, self.spec.seed, iteration
            tasks = [
                dataclasses.replace(task, episode_seeds=episode_seeds(chunk, *about))
                for chunk, task in zip(plan, tasks, strict=True)
            ]

        def on_output(number: int, output: ChunkOutput) -> None:
            if self.should_stop():
                raise Interrupted
            chunk = plan[number]
            if unscored and chunk is plan[-1]:
                output = ChunkOutput(unscored.take(output.rows, len(chunk.rows)), output.scores)
            collector.ended(number, chunk, output)
            on_rows(collector.done, collector.count, sum(c.num_written for c in output.rows.values()))

        def missing(dropped: set[int]) -> set[int]:
            return {m for n in dropped for m in plan[n].members}

        most = min(self.max_dropped_members, len(members) - 2)
        job = RolloutJob(
            tasks,
            on_output,
            collector.score,
            lambda dropped: len(missing(dropped)) <= most,
            scorer.rewards,
        )
        dropped = self.executor.execute(job)
        with job.clock.measure("score"):
            batches, scores = collector.gather(missing(dropped))
        found = Rollouts.collect(
            members, batch, scorer.names, batches, scores, job.clock.seconds, missing(dropped),
            num_generations=self.spec.num_generations, aggregate=self.spec.aggregate,
        )  # fmt: skip
        if not self._told_of_room and found.of_tools().get("tools/no_room_frequency"):
            log.warning(NO_ROOM)
            self._told_of_room = True
        return found


def _task(chunk: Chunk, members: Sequence[Member], context: EvalContext, unscored: UnscoredSamples | None) -> ChunkTask:
    prompts, who = context.prompts(chunk.rows), [members[m] for m in chunk.members]
    sampling, seed = context.sampling, chunk.seeds or chunk.seed
    if unscored:
        sampling = dataclasses.replace(sampling, first_sampled_row=len(prompts))
        who, prompts = [*who, *([CENTER] * len(unscored.prompts))], [*prompts, *unscored.prompts]
        if chunk.seeds:
            seed = (*chunk.seeds, *((chunk.seed + n) % 2**63 for n in range(len(unscored.prompts))))
    return ChunkTask(tuple(who), tuple(prompts), sampling, seed, chunk.rows, context)
