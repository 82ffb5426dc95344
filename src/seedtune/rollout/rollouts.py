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
from ..es.population import Member
from ..es.shaping import member_rewards
from ..rewards.function import Scores
from ..rewards.metric_names import column_of

Floats = NDArray[np.float64]

#: exp of this is the largest perplexity that is told.
_LARGEST = 300.0


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
    """Completions that are scored together, with their places (member, prompt)."""

    places: tuple[tuple[int, int], ...]
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class Rollouts:
    """Completions [member][prompt] (None: the member was not asked) and rewards_F_M_P [function, member, prompt] (NaN:
    not asked, or left out by the function). A member in `dropped` was left out of the iteration: it has no completions
    and no rewards.
    """

    batch: PromptBatch
    names: tuple[str, ...]
    completions: list[list[Completion | None]]
    rewards_F_M_P: Floats
    extra: dict[str, list[list[Any]]]
    logged: dict[str, float]
    seconds: Mapping[str, float]
    dropped: tuple[int, ...] = ()

    @staticmethod
    def collect(
        members: Sequence[Member],
        batch: PromptBatch,
        names: Sequence[str],
        batches: Sequence[RewardBatch],
        scored: Sequence[Sequence[Scores]],
        seconds: Mapping[str, float],
        dropped: Collection[int] = (),
    ) -> Rollouts:
        """Put the batches where they belong: members and prompts in their own order."""
        shape = (len(names), len(members), len(batch.prompts))
        rewards_F_M_P = np.full(shape, np.nan)
        completions: list[list[Any]] = [[None] * shape[2] for _ in members]
        extra: dict[str, list[list[Any]]] = {}
        metrics: dict[str, list[float]] = defaultdict(list)
        for scored_together, scores in zip(batches, scored, strict=True):
            for f, score in enumerate(scores):
                for (m, row), reward in zip(scored_together.places, score.rewards, strict=True):
                    rewards_F_M_P[f, m, row] = np.nan if reward is None else reward
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
            rewards_F_M_P[:, m] = np.nan
        logged = {name: float(np.mean(values)) for name, values in metrics.items()}
        left_out = tuple(sorted(dropped))
        return Rollouts(batch, tuple(names), completions, rewards_F_M_P, extra, logged, dict(seconds), left_out)

    def total_M_P(self, weights: Sequence[float]) -> Floats:
        """The weighted sum over functions; NaN where every function left the completion out (as TRL)."""
        with np.errstate(over="ignore"):
            weighted = self.rewards_F_M_P[: len(weights)] * np.asarray(weights)[:, None, None]
            total: Floats = np.nansum(weighted, axis=0)
        if not np.isfinite(total).all():
            raise RewardError("rewards add up to more than a number holds (infinity): scale them down.")
        total[np.all(np.isnan(weighted), axis=0)] = np.nan
        return total

    def answered(self) -> Iterator[tuple[int, int, Completion]]:
        """Member, prompt and completion, wherever there is one."""
        for m, row in enumerate(self.completions):
            for p, completion in enumerate(row):
                if completion is not None:
                    yield m, p, completion

    @property
    def new_tokens(self) -> int:
        return sum(len(c.ids) for _, _, c in self.answered())

    def tokens(self) -> int:
        """Prompt and completion tokens, as TRL counts `num_tokens`; those of every text that was read."""
        prompts = [self.batch.prompts[p] for _, p, _ in self.answered()]
        if self.batch.reads:
            return sum(len(prompt.ids) + len(text.ids) for prompt in prompts for text in prompt.given)
        return self.new_tokens + sum(len(prompt.ids) for prompt in prompts)

    def metrics(self, weights: Sequence[float]) -> dict[str, float]:
        """TRL's names. `reward` is the mean over members of a member's mean; `reward_std` its spread over members."""
        flat = [c for _, _, c in self.answered()]
        per_member = member_rewards(self.total_M_P(weights))
        out = dict(zip(("reward", "reward_std"), _mean_and_std(per_member), strict=True))
        for name, rewards_M_P in zip(self.names[: len(weights)], self.rewards_F_M_P, strict=False):
            out[f"rewards/{name}/mean"], out[f"rewards/{name}/std"] = _mean_and_std(rewards_M_P)
        out["completions/mean_length"] = float(np.mean([len(c.ids) for c in flat]))
        out["completions/clipped_ratio"] = float(np.mean([c.truncated for c in flat]))
        if self.batch.reads:
            out |= self._likelihood()
        for name, rewards_M_P in zip(self.names[len(weights) :], self.rewards_F_M_P[len(weights) :], strict=True):
            out[name], _ = _mean_and_std(rewards_M_P)
        return {**self.logged, **out}

    def _likelihood(self) -> dict[str, float]:
        """Of given completions: the loss of supervised fine-tuning, over all tokens, in nats; and exp of it."""
        total = sum(math.fsum(c.logprobs or ()) for _, _, c in self.answered())
        loss = -total / max(self.new_tokens, 1)
        return {"completions/loss": loss, "completions/perplexity": math.exp(min(loss, _LARGEST))}

    def rows(self, weights: Sequence[float]) -> list[dict[str, Any]]:
        """One row per completion, for `completions/`."""
        total = self.total_M_P(weights)
        return [
            {
                **{column: cells[m][p] for column, cells in self.extra.items()},
                "member": m,
                "prompt_index": self.batch.indices[p],
                "prompt": self.batch.prompts[p].content,
                "completion": completion.text,
                **({"rejected": given[1].text} if len(given := self.batch.prompts[p].given) > 1 else {}),
                "tokens": len(completion.ids),
                "truncated": completion.truncated,
                "reward": _plain(total[m, p]),
                **{column_of(name): _plain(self.rewards_F_M_P[f, m, p]) for f, name in enumerate(self.names)},
            }
            for m, p, completion in self.answered()
        ]


def unique_prompts(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of the `rows` of each prompt."""
    return list({row["prompt_index"]: row for row in reversed(rows)}.values())[::-1]


def _mean_and_std(values: Floats) -> tuple[float, float]:
    """Of the values that are known; 0 when none is."""
    seen = values[~np.isnan(values)]
    return (float(seen.mean()), float(seen.std())) if seen.size else (0.0, 0.0)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
