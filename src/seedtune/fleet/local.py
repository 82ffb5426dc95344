"""One replica on this machine: it answers chunk after chunk; scoring runs beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Completion, Engine, Sampling
from ..es.population import Member, Population
from ..tasks.pool import Scorer
from ..tasks.reward import Batch, Scores
from .answers import Answers, Clock
from .plan import Chunk, Questions, cut

OnChunk = Callable[[int, int, list[Completion]], None]


class LocalFleet:
    """The fleet of one. `interrupted` is asked between chunks; when it says yes, `Interrupted` is raised."""

    def __init__(
        self, engine: Engine, population: Population, sampling: Sampling, *, rows_at_once: int, seed: int
    ) -> None:
        self.engine = engine
        self.population = population
        self.sampling = sampling
        self.rows_at_once = rows_at_once
        self.seed = seed
        self.interrupted: Callable[[], bool] = lambda: False

    def evaluate(
        self,
        members: Sequence[Member | None],
        questions: Questions,
        scorer: Scorer,
        iteration: int,
        state: Mapping[str, Any],
        on_chunk: OnChunk,
    ) -> Answers:
        """Every member answers every question, in the chunks of the plan; rewards are scored while decoding goes on."""
        plan = cut(len(members), questions, self.rows_at_once, self.seed, iteration, mixed=self.engine.mixes_members)
        clock = Clock()
        answered: list[list[Completion]] = []
        scored: list[Future[list[Scores]]] = []
        for number, chunk in enumerate(plan, 1):
            if self.interrupted():
                raise Interrupted
            with clock.measure("perturb"):
                self.engine.become([members[m] for m in chunk.members])
            with clock.measure("generate"):
                prompts = [questions.prompts[row] for row in chunk.rows]
                completions = self.engine.generate(prompts, self.sampling, chunk.seed)
            answered.append(completions)
            scored.append(scorer.submit(to_score(chunk, completions, questions, state)))
            on_chunk(number, len(plan), completions)
        with clock.measure("perturb"):
            self.engine.become([None])
        with clock.measure("score"):
            scores = scorer.gather(scored)
        return Answers.collect(members, questions, scorer.rewards, plan, answered, scores, clock.seconds)

    def update(self, iteration: int, coefficients: NDArray[np.float32], rate: float) -> float:
        """Every replica applies an iteration's update from seeds and scalars. Returns the step's norm."""
        return self.engine.update(self.population.ask(iteration), coefficients, rate)

    def describe(self) -> Mapping[str, Any]:
        return self.engine.describe()

    def digest(self) -> str:
        return self.engine.digest()

    def save(self, folder: Path) -> None:
        self.engine.save(folder)


class Interrupted(Exception):
    """The user asked to stop before the iteration was finished. The centre is as the last update left it."""


def to_score(chunk: Chunk, completions: Sequence[Completion], questions: Questions, state: Mapping[str, Any]) -> Batch:
    """A chunk as reward functions see it: conversational prompts get conversational completions, as in TRL."""
    prompts = [questions.prompts[row] for row in chunk.rows]
    return Batch(
        prompts=[p.content for p in prompts],
        completions=[
            [{"role": "assistant", "content": c.text}] if p.conversational else c.text
            for p, c in zip(prompts, completions, strict=True)
        ],
        completion_ids=[list(c.ids) for c in completions],
        columns={name: [values[row] for row in chunk.rows] for name, values in questions.columns.items()},
        state=state,
    )
