"""One replica on this machine: it answers chunk after chunk; scoring runs beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Completion, Engine, Prompt, Sampling
from ..es.population import Member, Population
from ..tasks.pool import Scorer
from ..tasks.reward import Batch, Scores
from .answers import Answers, Clock, Piece
from .plan import Chunk, Questions, cut

#: Rows done, rows in all, and new tokens since the last call.
OnRows = Callable[[int, int, int], None]
#: Reward functions get at least so many completions at once, but at the end of a chunk: a call costs about as much as
#: it takes to score ten short texts.
_SCORED_TOGETHER = 16


class LocalFleet:
    """The fleet of one. `interrupted` is asked while decoding; when it says yes, `Interrupted` is raised."""

    def __init__(
        self, engine: Engine, population: Population, sampling: Sampling, *, chunk_size: int, seed: int
    ) -> None:
        self.engine = engine
        self.population = population
        self.sampling = sampling
        self.chunk_size = chunk_size
        self.seed = seed
        self.interrupted: Callable[[], bool] = lambda: False

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
        plan = cut(len(members), questions, self.chunk_size, self.seed, iteration, mixed=self.engine.mixes_members)
        clock, rows = Clock(), _Rows(questions, scorer, state, len(members) * len(questions.prompts))
        for number, chunk in enumerate(plan):
            riding = beside if number == len(plan) - 1 else None

            def on_completions(
                ended: Mapping[int, Completion], chunk: Chunk = chunk, riding: Beside | None = riding
            ) -> None:
                if self.interrupted():
                    raise Interrupted
                if riding:
                    ended = riding.take(ended, len(chunk.rows))
                rows.ended(chunk, ended)
                on_rows(rows.done, rows.count, sum(len(c.ids) for c in ended.values()))

            who = [members[m] for m in chunk.members]
            prompts, sampling = [questions.prompts[row] for row in chunk.rows], self.sampling
            if riding:
                sampling = dataclasses.replace(sampling, drawn_from=len(prompts))
                who, prompts = [*who, *([None] * len(riding.prompts))], [*prompts, *riding.prompts]
            with clock.measure("perturb"):
                self.engine.become(who)
            with clock.measure("generate"):
                self.engine.generate(prompts, sampling, chunk.seed, on_completions)
                rows.score()
        with clock.measure("perturb"):
            self.engine.restore()
        with clock.measure("score"):
            scores = scorer.gather(rows.scored)
        return Answers.collect(members, questions, scorer.rewards, rows.pieces, scores, clock.seconds)

    def update(self, iteration: int, coefficients: NDArray[np.float32], rate: float) -> float:
        """Every replica applies an iteration's update from seeds and scalars. Returns the step's norm."""
        return self.engine.update(self.population.ask(iteration), coefficients, rate)

    def describe(self) -> Mapping[str, Any]:
        return self.engine.describe()

    def digest(self) -> str:
        return self.engine.digest()

    def save(self, folder: Path) -> None:
        self.engine.save(folder)

    def save_state(self, file: Path) -> None:
        self.engine.save_state(file)

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


class _Rows:
    """The rows of an evaluation as they end: gathered into pieces, and handed to the scoring processes."""

    def __init__(self, questions: Questions, scorer: Scorer, state: Mapping[str, Any], count: int) -> None:
        self.questions, self.scorer, self.state = questions, scorer, state
        self.done, self.count = 0, count
        self.pieces: list[Piece] = []
        self.scored: list[Future[list[Scores]]] = []
        self._waiting: list[tuple[tuple[int, int], Completion]] = []

    def ended(self, chunk: Chunk, ended: Mapping[int, Completion]) -> None:
        """Raises RewardError for a piece of before."""
        self.done += len(ended)
        self._waiting += [((chunk.members[n], chunk.rows[n]), completion) for n, completion in ended.items()]
        if len(self._waiting) >= _SCORED_TOGETHER:
            self.score()
        self.scorer.check(self.scored)

    def score(self) -> None:
        if not self._waiting:
            return
        places, completions = zip(*self._waiting, strict=True)
        self._waiting = []
        self.pieces.append(Piece(places, completions))
        self.scored.append(self.scorer.submit(to_score(self.pieces[-1], self.questions, self.state)))


def to_score(piece: Piece, questions: Questions, state: Mapping[str, Any]) -> Batch:
    """A piece as reward functions see it: conversational prompts get conversational completions, as in TRL."""
    rows = [row for _, row in piece.places]
    prompts = [questions.prompts[row] for row in rows]
    return Batch(
        prompts=[p.content for p in prompts],
        completions=[
            [{"role": "assistant", "content": c.text}] if p.conversational else c.text
            for p, c in zip(prompts, piece.completions, strict=True)
        ],
        completion_ids=[list(c.ids) for c in piece.completions],
        columns={name: [values[row] for row in rows] for name, values in questions.columns.items()},
        state=state,
    )
