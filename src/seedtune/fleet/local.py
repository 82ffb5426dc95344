"""One replica on this machine: it answers chunk after chunk; scoring runs beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Completion, Engine, Prompt, Sampling
from ..es.population import Member, Population
from ..tasks.pool import Scorer
from ..tasks.reward import Reward
from .answers import Answers, Clock
from .plan import Asked, Chunk, Questions, Work, cut
from .rows import Part, ReplicaScorer, Rows

#: Rows done, rows in all, and new tokens since the last call.
OnRows = Callable[[int, int, int], None]
#: The number of a chunk, and rows of it that have ended.
OnPart = Callable[[int, Part], None]
#: Whether an evaluation may end without the answers to these chunks.
MayLeave = Callable[[set[int]], bool]


class LocalFleet:
    """The fleet of one. `interrupted` is asked while decoding; when it says yes, `Interrupted` is raised. `spare`
    members may be left out of an iteration, where there are slow replicas to leave behind.
    """

    spare = 0

    def __init__(
        self, engine: Engine, population: Population, sampling: Sampling, *, chunk_size: int, seed: int
    ) -> None:
        self.engine = engine
        self.population = population
        self.sampling = sampling
        self.chunk_size = chunk_size
        self.seed = seed
        self.interrupted: Callable[[], bool] = lambda: False

    def begin(self, questions: Questions) -> None:
        """A run is to start whose iterations ask so many questions. One replica has nothing to say of it."""

    def plan(self, members: int, questions: Questions, iteration: int) -> list[Chunk]:
        """The chunks of an evaluation."""
        return cut(members, questions, self.chunk_size, self.seed, iteration, mixed=self.engine.mixes_members)

    def evaluate(
        self,
        members: Sequence[Member | None],
        questions: Questions,
        scorer: Scorer,
        iteration: int,
        state: Mapping[str, Any],
        on_rows: OnRows,
        beside: Beside | None = None,
    ) -> Answers:
        """Every member answers every question, in the chunks of the plan; rows are scored while others are decoded."""
        plan = self.plan(len(members), questions, iteration)
        clock, rows = Clock(), Rows(questions, scorer, state, len(members) * len(questions.prompts))
        there = isinstance(scorer, ReplicaScorer)
        asked = Asked(questions, self.sampling, state, scorer.functions if there else None, scorer.timeout)
        works = [self._work(chunk, members, asked, beside if chunk is plan[-1] else None) for chunk in plan]

        def on_part(number: int, part: Part) -> None:
            if self.interrupted():
                raise Interrupted
            chunk = plan[number]
            if beside and chunk is plan[-1]:
                part = Part(beside.take(part.rows, len(chunk.rows)), part.scores)
            rows.ended(number, chunk, part)
            on_rows(rows.done, rows.count, sum(len(c.ids) for c in part.rows.values()))

        def missing(left: set[int]) -> set[int]:
            return {m for n in left for m in plan[n].members}

        def may_leave(left: set[int]) -> bool:
            return len(missing(left)) <= min(self.spare, len(members) - 2)

        left = self._answer(works, on_part, rows.score, clock, may_leave)
        with clock.measure("perturb"):
            self.engine.restore()
        with clock.measure("score"):
            pieces, scores = rows.gather()
        return Answers.collect(members, questions, scorer.names, pieces, scores, clock.seconds, missing(left))

    def _work(self, chunk: Chunk, members: Sequence[Member | None], asked: Asked, riding: Beside | None) -> Work:
        prompts, who = [asked.questions.prompts[n] for n in chunk.rows], [members[m] for m in chunk.members]
        sampling = asked.sampling
        if riding:
            sampling = dataclasses.replace(sampling, drawn_from=len(prompts))
            who, prompts = [*who, *([None] * len(riding.prompts))], [*prompts, *riding.prompts]
        return Work(tuple(who), tuple(prompts), sampling, chunk.seed, chunk.rows, asked)

    def _answer(
        self,
        works: Sequence[Work],
        on_part: OnPart,
        on_chunk: Callable[[], None],
        clock: Clock,
        may_leave: MayLeave,
    ) -> set[int]:
        """Answer every chunk; `on_chunk` is called behind the last completions of each. Returns the chunks that were
        left out.
        """
        for number, work in enumerate(works):

            def on_completions(rows: Mapping[int, Completion], number: int = number) -> None:
                on_part(number, Part(rows))

            with clock.measure("perturb"):
                self.engine.become(work.members)
            with clock.measure("generate"):
                self.engine.generate(work.prompts, work.sampling, work.seed, on_completions)
                on_chunk()
        return set()

    def scorer(self, rewards: Sequence[Reward], *, workers: int | None, timeout: float) -> Scorer:
        """Where rewards are computed. Raises RewardError for functions that cannot be sent there."""
        return Scorer(rewards, workers=workers, timeout=timeout)

    def update(self, iteration: int, coefficients: NDArray[np.float32], rate: float) -> float:
        """Every replica applies an iteration's update from seeds and scalars. Returns the step's norm."""
        return self.engine.update(self.population.ask(iteration), coefficients, rate)

    def metrics(self) -> dict[str, float]:
        """What there is to say of the replicas since the last iteration."""
        return {}

    def close(self) -> None:
        """Let replicas go."""

    def describe(self) -> Mapping[str, Any]:
        return self.engine.describe()

    def digest(self) -> str:
        return self.engine.digest()

    def save(self, folder: Path) -> None:
        self.engine.save(folder)

    def save_state(self, file: Path) -> None:
        self.engine.save_state(file)

    def remember(self, updates: Sequence[tuple[int, NDArray[np.float32], float]]) -> None:
        """The updates behind a state that was loaded: iteration, coefficients, rate. One replica has no use for it."""

    def load_state(self, file: Path, digest: str, steps: int) -> bool:
        return self.engine.load_state(file, digest, steps)


@dataclass
class Beside:
    """Responses of the centre that are drawn at temperature 1 and not scored. They ride along in the last chunk of an
    evaluation of the centre: a small batch costs almost as much as one twice as large.
    """

    prompts: Sequence[Prompt]
    completions: dict[int, Completion] = field(default_factory=dict)

    def take(self, ended: Mapping[int, Completion], first: int) -> dict[int, Completion]:
        """Keep those of the rows from `first` on; the others are not ours."""
        self.completions |= {n - first: completion for n, completion in ended.items() if n >= first}
        return {n: completion for n, completion in ended.items() if n < first}


class Interrupted(Exception):
    """The user asked to stop before the iteration was finished. The centre is as the last update left it."""
