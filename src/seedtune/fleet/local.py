"""One replica on this machine: it answers chunk after chunk; scoring runs beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Completion, Engine, Prompt, Sampling
from ..es.population import Member, Population
from ..tasks.pool import Scorer
from ..tasks.reward import Batch, Reward, Scores
from .answers import Answers, Clock, Piece
from .plan import Chunk, Questions, Work, cut

#: Rows done, rows in all, and new tokens since the last call.
OnRows = Callable[[int, int, int], None]
#: The number of a chunk, and rows of it that have ended.
OnAnswers = Callable[[int, Mapping[int, Completion]], None]
#: Whether an evaluation may end without the answers to these chunks.
MayLeave = Callable[[set[int]], bool]
#: Reward functions get at least so many completions at once, but at the end of a chunk: a call costs about as much as
#: it takes to score ten short texts.
_SCORED_TOGETHER = 16


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
        works = [self._work(chunk, members, questions, beside if chunk is plan[-1] else None) for chunk in plan]

        def on_completions(number: int, ended: Mapping[int, Completion]) -> None:
            if self.interrupted():
                raise Interrupted
            chunk = plan[number]
            if beside and chunk is plan[-1]:
                ended = beside.take(ended, len(chunk.rows))
            rows.ended(number, chunk, ended)
            on_rows(rows.done, rows.count, sum(len(c.ids) for c in ended.values()))

        def missing(left: set[int]) -> set[int]:
            return {m for n in left for m in plan[n].members}

        def may_leave(left: set[int]) -> bool:
            return len(missing(left)) <= min(self.spare, len(members) - 2)

        left = self._answer(works, on_completions, rows.score, clock, may_leave)
        with clock.measure("perturb"):
            self.engine.restore()
        with clock.measure("score"):
            pieces, scores = rows.gather()
        return Answers.collect(members, questions, scorer.rewards, pieces, scores, clock.seconds, missing(left))

    def _work(
        self, chunk: Chunk, members: Sequence[Member | None], questions: Questions, riding: Beside | None
    ) -> Work:
        prompts, who, sampling = [questions.prompts[n] for n in chunk.rows], [members[m] for m in chunk.members], None
        if riding:
            sampling = dataclasses.replace(self.sampling, drawn_from=len(prompts))
            who, prompts = [*who, *([None] * len(riding.prompts))], [*prompts, *riding.prompts]
        return Work(tuple(who), tuple(prompts), sampling or self.sampling, chunk.seed)

    def _answer(
        self,
        works: Sequence[Work],
        on_completions: OnAnswers,
        on_chunk: Callable[[], None],
        clock: Clock,
        may_leave: MayLeave,
    ) -> set[int]:
        """Answer every chunk; `on_chunk` is called behind the last completions of each. Returns the chunks that were
        left out.
        """
        for number, work in enumerate(works):
            with clock.measure("perturb"):
                self.engine.become(work.members)
            with clock.measure("generate"):
                self.engine.generate(work.prompts, work.sampling, work.seed, partial(on_completions, number))
                on_chunk()
        return set()

    def scorer(self, rewards: Sequence[Reward], *, workers: int, timeout: float) -> Scorer:
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


class _Rows:
    """The rows of an evaluation as they end: gathered into pieces of a chunk, and handed to the scoring processes."""

    def __init__(self, questions: Questions, scorer: Scorer, state: Mapping[str, Any], count: int) -> None:
        self.questions, self.scorer, self.state = questions, scorer, state
        self.done, self.count = 0, count
        self._pieces: list[tuple[int, Piece]] = []
        self._scored: list[Future[list[Scores]]] = []
        self._waiting: list[tuple[tuple[int, int], Completion]] = []
        self._number = 0

    def ended(self, number: int, chunk: Chunk, ended: Mapping[int, Completion]) -> None:
        """Raises RewardError for a piece of before."""
        self.done += len(ended)
        self._number = number
        self._waiting += [((chunk.members[n], chunk.rows[n]), completion) for n, completion in ended.items()]
        if len(self._waiting) >= _SCORED_TOGETHER:
            self.score()
        self.scorer.check(self._scored)

    def score(self) -> None:
        if not self._waiting:
            return
        places, completions = zip(*self._waiting, strict=True)
        self._waiting = []
        piece = Piece(places, completions)
        self._pieces.append((self._number, piece))
        self._scored.append(self.scorer.submit(to_score(piece, self.questions, self.state)))

    def gather(self) -> tuple[list[Piece], list[list[Scores]]]:
        """Pieces and their scores in the order of the plan, whichever came first. Raises RewardError."""
        scores = self.scorer.gather(self._scored)
        order = sorted(range(len(scores)), key=lambda n: self._pieces[n][0])  # stable
        return [self._pieces[n][1] for n in order], [scores[n] for n in order]


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
