"""The rows of an evaluation as they end: gathered into pieces, and scored while others are decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..engines.base import Completion
from ..tasks.pool import Scorer
from ..tasks.reward import Batch, Scores
from .answers import Piece
from .plan import Asked, Chunk, Questions

#: Reward functions get at least so many completions at once, but at the end of a chunk: a call costs about as much as
#: it takes to score ten short texts.
_SCORED_TOGETHER = 16


@dataclass(frozen=True)
class Part:
    """Rows of a chunk that have ended, by their number in it; and their rewards, where they were scored already."""

    rows: Mapping[int, Completion]
    scores: list[Scores] | None = None


class Rows:
    """Where `count` rows are expected, piece by piece; rewards are asked of `scorer`, but for parts that have them."""

    def __init__(self, questions: Questions, scorer: Scorer, state: Mapping[str, Any], count: int) -> None:
        self.questions, self.scorer, self.state = questions, scorer, state
        self.done, self.count = 0, count
        self._pieces: list[tuple[int, Piece]] = []
        self._scored: list[Future[list[Scores]]] = []
        self._waiting: list[tuple[tuple[int, int], Completion]] = []
        self._number = 0

    def ended(self, number: int, chunk: Chunk, part: Part) -> None:
        """Rows of the chunk of that number. Raises RewardError for a piece of before."""
        self.done += len(part.rows)
        self._number = number
        self._waiting += [((chunk.members[n], chunk.rows[n]), completion) for n, completion in part.rows.items()]
        if part.scores is not None or len(self._waiting) >= _SCORED_TOGETHER:
            self.score(part.scores)
        self.scorer.check(self._scored)

    def score(self, known: list[Scores] | None = None) -> None:
        """Have what waits scored, unless its rewards are known."""
        if not self._waiting:
            return
        places, completions = zip(*self._waiting, strict=True)
        self._waiting = []
        piece = Piece(places, completions)
        self._pieces.append((self._number, piece))
        if known is None:
            self._scored.append(self.scorer.submit(to_score(piece, self.questions, self.state)))
        else:
            self._scored.append(Future())
            self._scored[-1].set_result(known)

    def gather(self) -> tuple[list[Piece], list[list[Scores]]]:
        """Pieces and their scores in the order of the plan, whichever came first. Raises RewardError."""
        scores = self.scorer.gather(self._scored)
        order = sorted(range(len(scores)), key=lambda n: self._pieces[n][0])  # stable
        return [self._pieces[n][1] for n in order], [scores[n] for n in order]


class ReplicaScorer(Scorer):
    """Stands for the scorers of replicas, which score what they decode with its functions."""


class ScoredRows:
    """The rows of one chunk where it is decoded: cut into pieces as `Rows` cuts them, so that a reward function is
    called with the same completions wherever that is.
    """

    def __init__(self, rows: Sequence[int], asked: Asked, scorer: Scorer) -> None:
        self._count = len(rows)
        self._chunk = Chunk(tuple(range(self._count)), tuple(rows), seed=0)  # a row's place: its number, its question
        self._rows = Rows(asked.questions, scorer, asked.state, self._count)
        self._unscored: dict[int, Completion] = {}

    def ended(self, rows: Mapping[int, Completion]) -> None:
        """Raises RewardError for a piece of before."""
        self._unscored |= {n: completion for n, completion in rows.items() if n >= self._count}
        scored = {n: completion for n, completion in rows.items() if n < self._count}
        self._rows.ended(0, self._chunk, Part(scored))

    def parts(self) -> list[Part]:
        """All of them, when the last has ended, with their rewards. Raises RewardError."""
        self._rows.score()
        parts = []
        for piece, scores in zip(*self._rows.gather(), strict=True):
            numbers = [number for number, _ in piece.places]
            parts.append(Part(dict(zip(numbers, piece.completions, strict=True)), scores))
        return [*parts, Part(self._unscored)] if self._unscored else parts


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
