"""The data of a run, checked and tokenised: which questions an iteration asks, and which an evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from .engines.base import Engine, Prompt
from .errors import ConfigError
from .fleet.plan import Questions, draw
from .tasks import dataset
from .tasks.base import Rows
from .tasks.reward import NOT_GIVEN, Reward

_SHOWN_WITHOUT_EVAL_SET = 64


class Prompts:
    """Training rows, and the rows that the centre is evaluated on: `eval_rows`, or the first training prompts."""

    def __init__(self, train: Any, evaluation: Any, per_step: int | None) -> None:
        self.train = dataset.check(train, "train_dataset")
        self.held_out = evaluation is not None
        self.eval = dataset.check(evaluation, "eval_dataset") if self.held_out else _first(self.train)
        self.per_step = per_step
        if per_step and per_step > len(self.train):
            raise ConfigError(
                f"prompts_per_step is {per_step}, but the dataset has {len(self.train)} prompts: lower it, or leave it "
                "out to use them all."
            )
        self._train_encoded: list[Prompt] = []
        self._eval_encoded: list[Prompt] = []

    def check_columns(self, rewards: Sequence[Reward], eval_only: Sequence[Reward]) -> None:
        """Raises RewardError for a function that asks for a column which is not there."""
        for reward in rewards:
            reward.check_columns(dataset.columns_of(self.train))
        for reward in [*rewards, *eval_only]:
            reward.check_columns(dataset.columns_of(self.eval))

    def encode(self, engine: Engine, max_completion_length: int) -> int:
        """Tokenise everything; returns the tokens of the longest row, completion included. Raises DataError."""
        self._train_encoded = engine.encode([row["prompt"] for row in self.train], max_completion_length)
        self._eval_encoded = engine.encode([row["prompt"] for row in self.eval], max_completion_length)
        return max(len(p.ids) for p in [*self._train_encoded, *self._eval_encoded]) + max_completion_length

    @property
    def conversational(self) -> bool:
        """Whether training prompts are lists of messages."""
        return self._train_encoded[0].conversational

    def digest(self) -> str:
        """What the training data is, rows and tokens: 16 hexadecimal digits."""
        total = hashlib.sha256()
        for row, prompt in zip(self.train, self._train_encoded, strict=True):
            total.update(json.dumps([dict(row), prompt.ids], sort_keys=True, default=str).encode())
        return total.hexdigest()[:16]

    def batch(self, seed: int, iteration: int) -> Questions:
        """What all members of an iteration are asked."""
        indices = draw(seed, iteration, self.per_step, len(self.train))
        return _questions(self.train, self._train_encoded, indices)

    def evaluation(self) -> Questions:
        """What the centre is asked."""
        return _questions(self.eval, self._eval_encoded, list(range(len(self.eval))))


def _first(rows: Rows) -> Rows:
    return [rows[n] for n in range(min(len(rows), _SHOWN_WITHOUT_EVAL_SET))]


def _questions(rows: Rows, prompts: Sequence[Prompt], indices: list[int]) -> Questions:
    chosen = [rows[n] for n in indices]
    columns = {name: [row[name] for row in chosen] for name in dataset.columns_of(rows) if name not in NOT_GIVEN}
    return Questions(tuple(indices), tuple(prompts[n] for n in indices), columns)
