"""The rows of a rollout as they end: gathered into batches, and scored while others are decoded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from ..data.prompts import PromptBatch
from ..engines.base import Completion, Prompt
from ..es.population import Member
from ..rewards.call import Batch, Scores
from ..rewards.scorer import Scorer
from .chunks import Chunk, ChunkTask, EvalContext
from .rollouts import RewardBatch

#: Reward functions get at least so many completions at once, except at the end of a chunk: a call costs about as much
#: as it takes to score ten short texts.
_MIN_BATCH = 16
#: A member's number, and that of a row of the rollout.
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
    all of one member, prompt by prompt. Groups, and the order within them, depend on the plan alone. Where a function
    asks for groups, any means: the samples of a member for a prompt as the last of them ends.
    """

    def __init__(
        self,
        batch: PromptBatch,
        scorer: Scorer,
        state: Mapping[str, Any],
        plan: Sequence[Chunk],
        reward_batch: str = "any",
        num_generations: int = 1,
    ) -> None:
        self.batch, self.scorer, self.state, self.num_generations = batch, scorer, state, num_generations
        places = [place for chunk in plan for place in zip(chunk.members, chunk.rows, strict=True)]
        self.done, self.count = 0, len(places)
        self._batches: list[tuple[Any, RewardBatch]] = []  # with the number of the chunk, or of the group
        self._scored: list[Future[list[Scores]]] = []
        self._waiting: list[Row] = []
        self._number = 0
        self._alone = reward_batch != "any"  # groups are scored one by one
        in_groups = num_generations > 1 and "group" in scorer.functions.asks
        self._group_of: Callable[[Place], Hashable] | None = {
            "any": (lambda place: (place[0], self._prompt(place[1]))) if in_groups else None,
            "group": lambda place: batch.indices[self._prompt(place[1])],
            "member": lambda place: place[0],
        }[reward_batch]
        self._missing = Counter(map(self._group_of, places)) if self._group_of else Counter[Hashable]()
        self._groups: dict[Hashable, list[Row]] = defaultdict(list)

    def _prompt(self, row: int) -> int:
        """The prompt of the batch that a row completes."""
        return row // self.num_generations

    def ended(self, number: int, chunk: Chunk, output: ChunkOutput) -> None:
        """Rows of the chunk of that number. Raises RewardError for rows of before."""
        self.done += len(output.rows)
        self._number = number
        ended = [((chunk.members[n], chunk.rows[n]), completion) for n, completion in output.rows.items()]
        if output.scores is not None:
            if ended:
                self._submit(number, ended, output.scores)
        elif self._group_of:
            for row in ended:
                self._add_to_group(self._group_of(row[0]), row)
        else:
            self._waiting += ended
        if len(self._waiting) >= _MIN_BATCH:
            self.score()
        self.scorer.check(self._scored)

    def _add_to_group(self, group: Hashable, row: Row) -> None:
        self._groups[group].append(row)
        self._missing[group] -= 1
        if not self._missing[group]:
            whole = sorted(self._groups.pop(group), key=lambda row: row[0])
            if self._alone:
                self._submit(group, whole)
            else:
                self._waiting += whole

    def score(self) -> None:
        """Have what waits scored. Groups wait until they are whole."""
        if self._waiting:
            self._submit(self._number, self._waiting)
            self._waiting = []

    def _submit(self, number: Any, rows: Sequence[Row], known: list[Scores] | None = None) -> None:
        places, completions = zip(*rows, strict=True)
        together = RewardBatch(places, completions)
        self._batches.append((number, together))
        if known is None:
            self._scored.append(self.scorer.submit(self._to_score(together)))
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

    def _to_score(self, scored: RewardBatch) -> Batch:
        """As reward functions see them: conversational prompts get conversational completions, as in TRL."""
        numbers = [self._prompt(row) for _, row in scored.places]
        prompts = [self.batch.prompts[n] for n in numbers]
        both = list(zip(prompts, scored.completions, strict=True))
        return Batch(
            prompts=[p.content if c.conversation is None else c.conversation.prompt for p, c in both],
            completions=[_content(p, c) for p, c in both],
            completion_ids=[list(c.ids) for c in scored.completions],
            columns={
                **{name: [values[n] for n in numbers] for name, values in self.batch.columns.items()},
                **_fields(scored.completions),
            },
            state=self.state,
            outputs=self._outputs(scored),
        )

    def _outputs(self, scored: RewardBatch) -> dict[str, list[Any]]:
        """What functions ask for."""
        asks, found = self.scorer.functions.asks, dict[str, list[Any]]()
        if "group" in asks and self.num_generations > 1:
            keys = [(m, self._prompt(row)) for m, row in scored.places]
            numbers = {key: n for n, key in enumerate(dict.fromkeys(keys))}
            found["group"] = [numbers[key] for key in keys]
        if "completion_logprobs" in asks:
            found["completion_logprobs"] = [list(c.logprobs or ()) for c in scored.completions]
        if "completion_kl_uniform" in asks:
            found["completion_kl_uniform"] = [list(c.kl_uniform or ()) for c in scored.completions]
        conversations = [c.conversation for c in scored.completions]
        if "environments" in asks:
            found["environments"] = [talk and talk.environment for talk in conversations]
        if "environment_rewards" in asks:
            found["environment_rewards"] = [talk and {talk.kind: talk.reward} for talk in conversations]
        return found


def _content(prompt: Prompt, completion: Completion) -> Any:
    """As TRL gives it."""
    if completion.conversation is not None:
        return [dict(message) for message in completion.conversation.messages]
    return [{"role": "assistant", "content": completion.text}] if prompt.conversational else completion.text


def _fields(completions: Sequence[Completion]) -> dict[str, list[Any]]:
    """Columns that `rollout_func` adds; None where it added none."""
    names = dict.fromkeys(name for c in completions for name in c.fields or ())
    return {name: [(c.fields or {}).get(name) for c in completions] for name in names}


def _stripped(completion: Completion) -> Completion:
    """Without what only reward functions need."""
    talk = completion.conversation
    return replace(completion, logprobs=None, kl_uniform=None, conversation=talk and replace(talk, environment=None))


class ChunkScorer:
    """Scores the rows of one chunk where it is decoded, in the batches that `RolloutCollector` makes, so that a reward
    function is called with the same completions wherever that is.
    """

    def __init__(self, task: ChunkTask, context: EvalContext, scorer: Scorer) -> None:
        self._count = len(task.rows)
        self._chunk = Chunk(_numbered(task.members[: self._count]), task.rows, seed=0)
        self._collector = RolloutCollector(
            context.batch, scorer, context.state, [self._chunk], num_generations=context.num_generations
        )
        self._numbers = {place: n for n, place in enumerate(zip(self._chunk.members, task.rows, strict=True))}
        self._unscored: dict[int, Completion] = {}

    def ended(self, rows: Mapping[int, Completion]) -> None:
        """Raises RewardError for rows of before."""
        self._unscored |= {n: completion for n, completion in rows.items() if n >= self._count}
        scored = {n: completion for n, completion in rows.items() if n < self._count}
        self._collector.ended(0, self._chunk, ChunkOutput(scored))

    def outputs(self) -> list[ChunkOutput]:
        """All rows with their rewards, when the last has ended, and without what only those needed. Raises
        RewardError.
        """
        self._collector.score()
        outputs = []
        for batch, scores in zip(*self._collector.gather(), strict=True):
            numbers = [self._numbers[place] for place in batch.places]
            completions = [_stripped(c) for c in batch.completions]
            outputs.append(ChunkOutput(dict(zip(numbers, completions, strict=True)), scores))
        return [*outputs, ChunkOutput(self._unscored)] if self._unscored else outputs


def _numbered(members: Sequence[Member]) -> tuple[int, ...]:
    """A number for each, the same for the same."""
    numbers = {member: n for n, member in enumerate(dict.fromkeys(members))}
    return tuple(numbers[member] for member in members)
