"""The rows of a rollout as they end: gathered into batches, and scored while others are decoded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..data.prompts import PromptBatch
from ..engines.base import Completion
from ..rewards.function import Batch, Scores
from ..rewards.scorer import Scorer
from .chunks import Chunk, EvalContext
from .rollouts import RewardBatch

#: Reward functions get at least so many completions at once, except at the end of a chunk: a call costs about as much
#: as it takes to score ten short texts.
_MIN_BATCH = 16
#: A member's number, and a prompt's in the batch.
Place = tuple[int, int]
Row = tuple[Place, Completion]


@dataclass(frozen=True)
class ChunkOutput:
    """Rows of a chunk that have ended, by their number in it; and their rewards, where they were scored already."""

    rows: Mapping[int, Completion]
    scores: list[Scores] | None = None


class RolloutCollector:
    """Collects the rows of a rollout as they end; has `scorer` score those that come without rewards.

    `reward_batch`: what is scored together. any: rows as they end; group: all of one prompt, member by member; member:
    all of one member, prompt by prompt. Groups, and the order within them, depend on the plan alone.
    """

    def __init__(
        self,
        batch: PromptBatch,
        scorer: Scorer,
        state: Mapping[str, Any],
        plan: Sequence[Chunk],
        reward_batch: str = "any",
    ) -> None:
        self.batch, self.scorer, self.state = batch, scorer, state
        places = [place for chunk in plan for place in zip(chunk.members, chunk.rows, strict=True)]
        self.done, self.count = 0, len(places)
        self._batches: list[tuple[int, RewardBatch]] = []
        self._scored: list[Future[list[Scores]]] = []
        self._waiting: list[Row] = []
        self._number = 0
        self._group_of: Callable[[Place], int] | None = {
            "any": None,
            "group": lambda place: batch.indices[place[1]],
            "member": lambda place: place[0],
        }[reward_batch]
        self._missing = Counter(map(self._group_of, places)) if self._group_of else Counter[int]()
        self._groups: dict[int, list[Row]] = defaultdict(list)

    def ended(self, number: int, chunk: Chunk, output: ChunkOutput) -> None:
        """Rows of the chunk of that number. Raises RewardError for rows of before."""
        self.done += len(output.rows)
        self._number = number
        ended = [((chunk.members[n], chunk.rows[n]), completion) for n, completion in output.rows.items()]
        if self._group_of:
            for row in ended:
                self._add_to_group(self._group_of(row[0]), row)
            self.scorer.check(self._scored)
            return
        self._waiting += ended
        if output.scores is not None or len(self._waiting) >= _MIN_BATCH:
            self.score(output.scores)
        self.scorer.check(self._scored)

    def _add_to_group(self, group: int, row: Row) -> None:
        self._groups[group].append(row)
        self._missing[group] -= 1
        if not self._missing[group]:
            self._submit(group, sorted(self._groups.pop(group), key=lambda row: row[0]))

    def score(self, known: list[Scores] | None = None) -> None:
        """Have what waits scored, unless its rewards are known. Groups wait until they are whole."""
        if self._waiting:
            self._submit(self._number, self._waiting, known)
            self._waiting = []

    def _submit(self, number: int, rows: Sequence[Row], known: list[Scores] | None = None) -> None:
        places, completions = zip(*rows, strict=True)
        together = RewardBatch(places, completions)
        self._batches.append((number, together))
        if known is None:
            self._scored.append(self.scorer.submit(_to_score(together, self.batch, self.state)))
        else:
            self._scored.append(Future())
            self._scored[-1].set_result(known)

    def gather(self, dropped: Collection[int] = ()) -> tuple[list[RewardBatch], list[list[Scores]]]:
        """Batches and their scores in the order of the plan, whichever came first; groups that lack rows of members
        that were `dropped` are scored without those members. Raises RewardError.
        """
        for group, rows in self._groups.items():
            if left := sorted((row for row in rows if row[0][0] not in dropped), key=lambda row: row[0]):
                self._submit(group, left)
        self._groups = {}
        scores = self.scorer.gather(self._scored)
        order = sorted(range(len(scores)), key=lambda n: self._batches[n][0])  # stable
        return [self._batches[n][1] for n in order], [scores[n] for n in order]


class ChunkScorer:
    """Scores the rows of one chunk where it is decoded, in the batches that `RolloutCollector` makes, so that a reward
    function is called with the same completions wherever that is.
    """

    def __init__(self, rows: Sequence[int], context: EvalContext, scorer: Scorer) -> None:
        self._count = len(rows)
        self._chunk = Chunk(tuple(range(self._count)), tuple(rows), seed=0)  # a row's place: its number, its prompt
        self._collector = RolloutCollector(context.batch, scorer, context.state, [self._chunk])
        self._unscored: dict[int, Completion] = {}

    def ended(self, rows: Mapping[int, Completion]) -> None:
        """Raises RewardError for rows of before."""
        self._unscored |= {n: completion for n, completion in rows.items() if n >= self._count}
        scored = {n: completion for n, completion in rows.items() if n < self._count}
        self._collector.ended(0, self._chunk, ChunkOutput(scored))

    def outputs(self) -> list[ChunkOutput]:
        """All rows with their rewards, when the last has ended. Raises RewardError."""
        self._collector.score()
        outputs = []
        for batch, scores in zip(*self._collector.gather(), strict=True):
            numbers = [number for number, _ in batch.places]
            outputs.append(ChunkOutput(dict(zip(numbers, batch.completions, strict=True)), scores))
        return [*outputs, ChunkOutput(self._unscored)] if self._unscored else outputs


def _to_score(scored: RewardBatch, batch: PromptBatch, state: Mapping[str, Any]) -> Batch:
    """Completions as reward functions see them: conversational prompts get conversational completions, as in TRL."""
    rows = [row for _, row in scored.places]
    prompts = [batch.prompts[row] for row in rows]
    return Batch(
        prompts=[p.content for p in prompts],
        completions=[
            [{"role": "assistant", "content": c.text}] if p.conversational else c.text
            for p, c in zip(prompts, scored.completions, strict=True)
        ],
        completion_ids=[list(c.ids) for c in scored.completions],
        columns={name: [values[row] for row in rows] for name, values in batch.columns.items()},
        state=state,
    )
