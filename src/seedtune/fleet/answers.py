"""What came back from an evaluation: completions, rewards, and the metrics that follow from them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Completion
from ..errors import RewardError
from ..es.population import Member
from ..es.shaping import member_rewards
from ..tasks.reward import Scores
from .plan import Questions

Floats = NDArray[np.float64]


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
class Piece:
    """Completions that are scored together, with their places (member, prompt)."""

    places: tuple[tuple[int, int], ...]
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class Answers:
    """Completions [member][prompt] and rewards_F_M_P [function, member, prompt] (NaN: left out by the function). A
    member in `dropped` was left out of the iteration: it has no completions and no rewards.
    """

    questions: Questions
    names: tuple[str, ...]
    completions: list[list[Completion]]
    rewards_F_M_P: Floats
    extra: dict[str, list[list[Any]]]
    logged: dict[str, float]
    seconds: Mapping[str, float]
    dropped: tuple[int, ...] = ()

    @staticmethod
    def collect(
        members: Sequence[Member | None],
        questions: Questions,
        names: Sequence[str],
        pieces: Sequence[Piece],
        scored: Sequence[Sequence[Scores]],
        seconds: Mapping[str, float],
        dropped: Collection[int] = (),
    ) -> Answers:
        """Put the pieces where they belong: members and prompts in their own order."""
        shape = (len(names), len(members), len(questions.prompts))
        rewards_F_M_P = np.full(shape, np.nan)
        completions: list[list[Any]] = [[None] * shape[2] for _ in members]
        extra: dict[str, list[list[Any]]] = {}
        metrics: dict[str, list[float]] = defaultdict(list)
        for piece, scores in zip(pieces, scored, strict=True):
            for f, score in enumerate(scores):
                for (m, row), reward in zip(piece.places, score.rewards, strict=True):
                    rewards_F_M_P[f, m, row] = np.nan if reward is None else reward
                for name, values in score.metrics.items():
                    metrics[name] += values
                for column, values in score.extra.items():
                    cells = extra.setdefault(column, [[None] * shape[2] for _ in members])
                    for (m, row), value in zip(piece.places, values, strict=False):
                        cells[m][row] = value
            for (m, row), completion in zip(piece.places, piece.completions, strict=True):
                completions[m][row] = completion
        for m in dropped:  # whole members: means over different prompts would not be comparable
            completions[m] = []
            rewards_F_M_P[:, m] = np.nan
        logged = {name: float(np.mean(values)) for name, values in metrics.items()}
        left_out = tuple(sorted(dropped))
        return Answers(questions, tuple(names), completions, rewards_F_M_P, extra, logged, dict(seconds), left_out)

    def total_M_P(self, weights: Sequence[float]) -> Floats:
        """The weighted sum over functions; NaN where every function left the completion out (as TRL)."""
        with np.errstate(over="ignore"):
            weighted = self.rewards_F_M_P[: len(weights)] * np.asarray(weights)[:, None, None]
            total: Floats = np.nansum(weighted, axis=0)
        if not np.isfinite(total).all():
            raise RewardError("rewards add up to more than a number holds (infinity): scale them down.")
        total[np.all(np.isnan(weighted), axis=0)] = np.nan
        return total

    @property
    def new_tokens(self) -> int:
        return sum(len(c.ids) for row in self.completions for c in row)

    def tokens(self) -> int:
        """Prompt and completion tokens, as TRL counts `num_tokens`."""
        there = len(self.completions) - len(self.dropped)
        return self.new_tokens + there * sum(len(p.ids) for p in self.questions.prompts)

    def metrics(self, weights: Sequence[float]) -> dict[str, float]:
        """TRL's names. `reward` is the mean over members of a member's mean; `reward_std` its spread over members."""
        flat = [c for row in self.completions for c in row]
        per_member = member_rewards(self.total_M_P(weights))
        out = {"reward": _mean(per_member), "reward_std": _std(per_member)}
        for name, rewards_M_P in zip(self.names[: len(weights)], self.rewards_F_M_P, strict=False):
            out[f"rewards/{name}/mean"] = _mean(rewards_M_P)
            out[f"rewards/{name}/std"] = _std(rewards_M_P)
        out["completions/mean_length"] = float(np.mean([len(c.ids) for c in flat]))
        out["completions/clipped_ratio"] = float(np.mean([c.truncated for c in flat]))
        for name, rewards_M_P in zip(self.names[len(weights) :], self.rewards_F_M_P[len(weights) :], strict=True):
            out[name] = _mean(rewards_M_P)
        return {**out, **self.logged}

    def rows(self, weights: Sequence[float]) -> list[dict[str, Any]]:
        """One row a completion, for `completions/`."""
        total = self.total_M_P(weights)
        out = []
        for m, row in enumerate(self.completions):
            for p, completion in enumerate(row):
                scores = {name: _plain(self.rewards_F_M_P[f, m, p]) for f, name in enumerate(self.names)}
                out.append(
                    {
                        **{column: cells[m][p] for column, cells in self.extra.items()},
                        "member": m,
                        "prompt_index": self.questions.indices[p],
                        "prompt": self.questions.prompts[p].content,
                        "completion": completion.text,
                        "tokens": len(completion.ids),
                        "truncated": completion.truncated,
                        "reward": _plain(total[m, p]),
                        **scores,
                    }
                )
        return out


def _mean(values: Floats) -> float:
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if seen.size else 0.0


def _std(values: Floats) -> float:
    seen = values[~np.isnan(values)]
    return float(seen.std()) if seen.size else 0.0


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
