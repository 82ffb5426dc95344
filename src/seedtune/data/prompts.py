"""The prompts of a run, checked and tokenized: those of an iteration, and those of an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..engines.base import Engine, Prompt
from ..engines.tokenization import Texts
from ..errors import ConfigError
from ..noise import spec
from ..rewards.function import NOT_GIVEN, Reward
from ..tasks.base import Rows
from ..tools.toolset import ToolSet
from . import dataset
from .digest import DataDigest

log = logging.getLogger(__name__)

_SHOWN_WITHOUT_EVAL_SET = 64


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of an iteration, with their index in the dataset and their columns (one value per prompt)."""

    indices: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    columns: Mapping[str, list[Any]]

    @property
    def reads(self) -> bool:
        """Whether the prompts' given completions are read, and nothing is decoded."""
        return bool(self.prompts[0].given)


class Prompts:
    """Training rows, and the rows that the center is evaluated on: `evaluation`, or the first training prompts.

    An iteration has `prompts_per_step` of them (None: all), or as many as its units (pairs, or single members) can
    answer twice over with `prompts_per_member` each: two on a prompt tell its difficulty from what noise does.

    `texts`: the columns of given completions, where those are read and nothing is decoded. `tools`: what prompts name.
    """

    def __init__(
        self,
        train: Any,
        evaluation: Any,
        prompts_per_step: int | None,
        prompts_per_member: int | None = None,
        num_units: int = 1,
        texts: Sequence[str] = (),
        tools: ToolSet | None = None,
    ) -> None:
        self.texts, self.tools = texts, tools
        self.train = dataset.check(train, "train_dataset", texts)
        self.held_out = evaluation is not None
        self.eval = _first(self.train)
        if self.held_out:
            self.eval = self.train if evaluation is train else dataset.check(evaluation, "eval_dataset", texts)
        if prompts_per_member and prompts_per_member > len(self.train):
            raise ConfigError(
                f"prompts_per_member is {prompts_per_member}, but the dataset has {len(self.train)} prompts: lower it, "
                "or leave it out, so that members answer all of them."
            )
        if prompts_per_member and not prompts_per_step:
            prompts_per_step = min(max(num_units * prompts_per_member // 2, prompts_per_member), len(self.train))
        self.prompts_per_step = prompts_per_step
        if prompts_per_step and prompts_per_step > len(self.train):
            raise ConfigError(
                f"prompts_per_step is {prompts_per_step}, but the dataset has {len(self.train)} prompts: lower it, or "
                "leave it out to use all of them."
            )
        self._train_encoded: list[Prompt] = []
        self._eval_encoded: list[Prompt] = []

    def check_columns(
        self, rewards: Sequence[Reward], eval_only: Sequence[Reward], num_generations: int = 1, *, complete: bool = True
    ) -> None:
        """Raises RewardError for a function that requires a column which the rows lack (unless there may be others:
        they are not `complete`), or several completions per prompt where there is one; DataError where one of
        ours cannot say what is right.
        """
        both = [*rewards, *eval_only]
        parts = [(rewards, self.train, "train_dataset"), (both, self.eval, "eval_dataset")]
        if not self.held_out:
            parts = [(both, self.train, "train_dataset")]
        elif self.eval is self.train:
            parts = parts[1:]
        for functions, rows, name in parts:
            for reward in functions:
                reward.check_columns(dataset.columns_of(rows), num_generations, complete=complete, what=name)
                if complete:
                    reward.check_rows(rows, name)

    def encode(self, engine: Engine | Texts, max_completion_length: int) -> int:
        """Tokenize everything; returns the tokens of the longest row, completion included. Raises DataError."""
        length = 0 if self.texts else max_completion_length

        def encoded(rows: Rows) -> list[Prompt]:
            prompts = engine.encode([row["prompt"] for row in rows], length, tools=self._schemas(rows))
            if not self.texts:
                return prompts
            texts: Texts = engine if isinstance(engine, Texts) else engine.texts
            return texts.give(prompts, [[row[column] for column in self.texts] for row in rows])

        self._train_encoded, self._eval_encoded = encoded(self.train), encoded(self.eval)
        return max(p.num_tokens for p in [*self._train_encoded, *self._eval_encoded]) + length

    def _schemas(self, rows: Rows) -> list[Any] | None:
        """What tools each row's prompt names."""
        if (tools := self.tools) is None:
            return None
        return [tools.schemas[tools.environment_of(row)] for row in rows]

    @property
    def conversational(self) -> bool:
        """Whether training prompts are lists of messages."""
        return self._train_encoded[0].conversational

    def digest(self) -> str:
        """The digest of the training data, rows and tokens: 16 hexadecimal digits. Says which columns only count by the
        kind of what they hold.
        """
        digest = DataDigest()
        for row, prompt in zip(self.train, self._train_encoded, strict=True):
            digest.add(row, [*prompt.ids, *(token for text in prompt.given for token in text.ids)])
        for column, kinds in digest.left_out.items():
            log.warning(
                f"train_dataset: column {column!r} holds objects ({kinds}) that only count by their kind: a resume "
                "does not notice when what they hold has changed."
            )
        return digest.hexdigest()

    def batch(self, seed: int, iteration: int) -> PromptBatch:
        """The prompts of an iteration, the same for all members."""
        indices = sample_prompt_indices(seed, iteration, self.prompts_per_step, len(self.train))
        return _batch(self.train, self._train_encoded, indices)

    def at(self, rows: Sequence[int]) -> PromptBatch:
        """Training prompts by their index."""
        return _batch(self.train, self._train_encoded, list(rows))

    def some(self, seed: int, count: int) -> PromptBatch:
        """At most `count` training prompts, shuffled."""
        size = len(self.train)
        return _batch(self.train, self._train_encoded, sample_prompt_indices(seed, 1, min(count, size), size))

    def evaluation(self) -> PromptBatch:
        """The prompts that the center is evaluated on."""
        return _batch(self.eval, self._eval_encoded, list(range(len(self.eval))))


def _first(rows: Rows) -> Rows:
    return [rows[n] for n in range(min(len(rows), _SHOWN_WITHOUT_EVAL_SET))]


def _batch(rows: Rows, prompts: Sequence[Prompt], indices: list[int]) -> PromptBatch:
    chosen = [rows[n] for n in indices]
    columns = {name: [row[name] for row in chosen] for name in dataset.columns_of(rows) if name not in NOT_GIVEN}
    return PromptBatch(tuple(indices), tuple(prompts[n] for n in indices), columns)


_shuffled = lru_cache(maxsize=2)(spec.permutation)


def sample_prompt_indices(seed: int, iteration: int, count: int | None, size: int) -> list[int]:
    """The prompts of iteration 1, 2, ...: the next `count` through a new shuffle per epoch; None: all of them."""
    if count is None:
        return list(range(size))
    first = (iteration - 1) * count
    return [int(_shuffled(seed, n // size, size)[n % size]) for n in range(first, first + count)]
