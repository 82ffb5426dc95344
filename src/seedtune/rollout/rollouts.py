"""What came back from a rollout: completions, rewards, and the metrics that follow from them."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.prompts import PromptBatch
from ..engines.base import Completion
from ..errors import RewardError
from ..es.aggregate import MEAN, Aggregate
from ..es.population import Member
from ..es.shaping import member_rewards
from ..rewards.answers import final_answer
from ..rewards.call import Scores
from ..rewards.metric_names import COLUMNS, column_of

Floats = NDArray[np.float64]

#: exp of this is the largest perplexity that is told.
_LARGEST = 300.0
#: Squares of larger ones come near to what a number holds.
_LARGEST_REWARD = 1e100


class Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started


@dataclass(frozen=True)
class RewardBatch:
    """Completions that are scored together, with their places (member, row of the rollout)."""

    places: tuple[tuple[int, int], ...]
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class Rollouts:
    """Completions [member][row] (None: the member was not asked), a prompt's samples one after another, and
    rewards_F_M_P_G [function, member, prompt, sample] (NaN: not asked, or left out by the function). A member in
    `dropped` was left out of the iteration: it has no completions and no rewards. `seconds`: what parts of it took.
    """

    batch: PromptBatch
    names: tuple[str, ...]
    completions: list[list[Completion | None]]
    rewards_F_M_P_G: Floats
    extra: dict[str, list[list[Any]]]
    logged: dict[str, float]
    seconds: Mapping[str, float]
    dropped: tuple[int, ...] = ()
    aggregate: Aggregate = MEAN

    @staticmethod
    def collect(
        members: Sequence[Member],
        batch: PromptBatch,
        names: Sequence[str],
        batches: Sequence[RewardBatch],
        scored: Sequence[Sequence[Scores]],
        seconds: Mapping[str, float],
        dropped: Collection[int] = (),
        *,
        num_generations: int = 1,
        aggregate: Aggregate = MEAN,
    ) -> Rollouts:
        """Put the batches where they belong: members, prompts and samples in their own order. `seconds` by name."""
        shape = (len(names), len(members), len(batch.prompts) * num_generations)
        rewards = np.full(shape, np.nan)
        completions: list[list[Any]] = [[None] * shape[2] for _ in members]
        extra: dict[str, list[list[Any]]] = {}
        metrics: dict[str, list[float]] = defaultdict(list)
        for scored_together, scores in zip(batches, scored, strict=True):
            for f, score in enumerate(scores):
                for (m, row), reward in zip(scored_together.places, score.rewards, strict=True):
                    rewards[f, m, row] = np.nan if reward is None else reward
                for name, values in score.metrics.items():
                    metrics[name] += values
                for column, values in score.extra.items():
                    cells = extra.setdefault(column, [[None] * shape[2] for _ in members])
                    for (m, row), value in zip(scored_together.places, values, strict=False):
                        cells[m][row] = value
            for (m, row), completion in zip(scored_together.places, scored_together.completions, strict=True):
                completions[m][row] = completion
        for m in dropped:  # whole members: means over different prompts would not be comparable
            completions[m] = []
            rewards[:, m] = np.nan
        rewards_F_M_P_G = rewards.reshape(*shape[:2], len(batch.prompts), num_generations)
        logged = {name: float(np.mean(values)) for name, values in metrics.items()}
        left_out = tuple(sorted(dropped))
        return Rollouts(
            batch, tuple(names), completions, rewards_F_M_P_G, extra, logged, dict(seconds), left_out, aggregate
        )

    @property
    def num_generations(self) -> int:
        """Samples that a member drew for each prompt."""
        return int(self.rewards_F_M_P_G.shape[3])

    def total_M_P_G(self, weights: Sequence[float]) -> Floats:
        """What completions earn: the weighted sum over functions; NaN where every function left one out (as TRL).
        Raises RewardError for sums that no number holds.
        """
        with np.errstate(over="ignore"):
            weighted = self.rewards_F_M_P_G[: len(weights)] * np.asarray(weights)[:, None, None, None]
            total: Floats = np.nansum(weighted, axis=0)
        _check_finite(total)
        total[np.all(np.isnan(weighted), axis=0)] = np.nan
        return total

    def total_M_P(self, weights: Sequence[float]) -> Floats:
        """What each member earns for each prompt: of its samples, what `aggregate` makes of them. Raises RewardError as
        `total_M_P_G`.
        """
        answers = self._answers_M_P_G() if self.aggregate.needs_answers and self.num_generations > 1 else None
        with np.errstate(over="ignore"):
            total = self.aggregate(self.total_M_P_G(weights), answers)
        _check_finite(total[~np.isnan(total)])
        return total

    def rewards_M_P(self, function: int) -> Floats:
        """The mean over samples of what one function gave."""
        return MEAN(self.rewards_F_M_P_G[function])

    def _answers_M_P_G(self) -> NDArray[np.int64]:
        """A number for each completion, the same for equal answers; -1 where there is none."""
        numbers: dict[str, int] = {}
        answers = np.full(self.rewards_F_M_P_G.shape[1:], -1)
        for m, row, completion in self.answered():
            answer = final_answer(completion.text)
            answers[m, *divmod(row, self.num_generations)] = numbers.setdefault(answer, len(numbers))
        return answers

    def answered(self) -> Iterator[tuple[int, int, Completion]]:
        """Member, row and completion, wherever there is one."""
        for m, completions in enumerate(self.completions):
            for row, completion in enumerate(completions):
                if completion is not None:
                    yield m, row, completion

    @property
    def new_tokens(self) -> int:
        """Tokens that the model wrote."""
        return sum(c.num_written for _, _, c in self.answered())

    def tokens(self) -> int:
        """Prompt and completion tokens, as TRL counts `num_tokens`; those of every text that was read."""
        prompts = [self.batch.prompts[row // self.num_generations] for _, row, _ in self.answered()]
        if self.batch.reads:
            return sum(len(prompt.ids) + len(text.ids) for prompt in prompts for text in prompt.given)
        return self.new_tokens + sum(len(prompt.ids) for prompt in prompts)

    def metrics(self, weights: Sequence[float]) -> dict[str, float]:
        """TRL's names. `reward` is the mean over members of a member's mean; `reward_std` its spread over members."""
        flat = [c for _, _, c in self.answered()]
        per_member = member_rewards(self.total_M_P(weights))
        out = dict(zip(("reward", "reward_std"), _mean_and_std(per_member), strict=True))
        for name, rewards in zip(self.names[: len(weights)], self.rewards_F_M_P_G, strict=False):
            out[f"rewards/{name}/mean"], out[f"rewards/{name}/std"] = _mean_and_std(rewards)
        out["completions/mean_length"] = float(np.mean([c.num_written for c in flat]))
        out["completions/clipped_ratio"] = float(np.mean([c.truncated for c in flat]))
        if self.batch.reads:
            out |= self._likelihood()
        out |= self.of_tools()
        for name, rewards in zip(self.names[len(weights) :], self.rewards_F_M_P_G[len(weights) :], strict=True):
            out[name], _ = _mean_and_std(rewards)
        return {**self.logged, **out}

    def of_tools(self) -> dict[str, float]:
        """Of conversations. TRL's: calls per completion, and the share that failed; and the share of completions that
        have a call which could not be read, and of those that ended as no room was left.
        """
        talks = [c.conversation for _, _, c in self.answered() if c.conversation is not None]
        if not talks:
            return {}
        calls = sum(talk.calls for talk in talks)
        return {
            "tools/call_frequency": calls / len(talks),
            "tools/failure_frequency": sum(talk.failures for talk in talks) / calls if calls else 0.0,
            "tools/malformed_frequency": sum(talk.malformed > 0 for talk in talks) / len(talks),
            "tools/no_room_frequency": sum(talk.no_room for talk in talks) / len(talks),
        }

    def _likelihood(self) -> dict[str, float]:
        """Of given completions: the loss of supervised fine-tuning, over all tokens, in nats; and exp of it."""
        total = sum(math.fsum(c.logprobs or ()) for _, _, c in self.answered())
        loss = -total / max(self.new_tokens, 1)
        return {"completions/loss": loss, "completions/perplexity": math.exp(min(loss, _LARGEST))}

    def rows(self, weights: Sequence[float]) -> list[dict[str, Any]]:
        """One row per completion, for `completions/`; of several samples of a prompt each has its number, and what
        they earn together.
        """
        total_M_P, total_M_P_G = self.total_M_P(weights), self.total_M_P_G(weights)

        def of_several(m: int, p: int, g: int) -> dict[str, Any]:
            return {} if self.num_generations == 1 else {"sample": g, "prompt_reward": _plain(total_M_P[m, p])}

        return [
            {
                **{column: cells[m][row] for column, cells in self.extra.items()},
                "member": m,
                "prompt_index": self.batch.indices[p],
                "prompt": _prompt_of(completion, self.batch.prompts[p].content),
                "completion": completion.text,
                **_of_conversation(completion),
                **({"rejected": given[1].text} if len(given := self.batch.prompts[p].given) > 1 else {}),
                "tokens": completion.num_written,
                "truncated": completion.truncated,
                "reward": _plain(total_M_P_G[m, p, g]),
                **of_several(m, p, g),
                **{column_of(name): _plain(self.rewards_F_M_P_G[f, m, p, g]) for f, name in enumerate(self.names)},
            }
            for m, row, completion in self.answered()
            for p, g in [divmod(row, self.num_generations)]
        ]


def _prompt_of(completion: Completion, content: Any) -> Any:
    return content if completion.conversation is None else completion.conversation.prompt


def _of_conversation(completion: Completion) -> dict[str, Any]:
    """All that was said behind the prompt."""
    return {} if completion.conversation is None else {"messages": list(completion.conversation.messages)}


def per_prompt(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of an evaluation's completions, one per prompt, as statistics over prompts take them: of several samples the
    first, with what they earn together as its reward and with the means of other numbers (None, where none is known).
    """
    samples: dict[Any, list[Mapping[str, Any]]] = {}
    for n, row in enumerate(rows):
        samples.setdefault(row["prompt_index"] if "sample" in row else ("row", n), []).append(row)
    return [_together(some) if "sample" in some[0] else some[0] for some in samples.values()]


def _together(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = samples[0]
    columns = [name for name in first if name not in COLUMNS]
    known = {name: [row[name] for row in samples if row.get(name) is not None] for name in columns}
    means = {
        name: float(np.mean(values)) if values else None
        for name, values in known.items()
        if all(isinstance(value, int | float) for value in values)
    }
    return {**first, **means, "reward": first["prompt_reward"]}


def unique_prompts(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of the `rows` of each prompt."""
    return list({row["prompt_index"]: row for row in reversed(rows)}.values())[::-1]


def _check_finite(totals: Floats) -> None:
    """Raises RewardError for what cannot be compared: means and spreads take squares."""
    if not (np.isfinite(totals) & (np.abs(totals) < _LARGEST_REWARD)).all():
        raise RewardError(
            f"rewards add up to more than can be compared (infinity, or beyond {_LARGEST_REWARD:g}): scale them down."
        )


def _mean_and_std(values: Floats) -> tuple[float, float]:
    """Of the values that are known; 0 when none is."""
    seen = values[~np.isnan(values)]
    return (float(seen.mean()), float(seen.std())) if seen.size else (0.0, 0.0)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
