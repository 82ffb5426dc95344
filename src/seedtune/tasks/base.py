"""What a task is: rows to train on, held-out rows, reward functions, and gold metrics, which measure what is meant.

A reward function has TRL's signature: it is called by keyword with `prompts`, `completions`, `completion_ids`, every
column of the dataset, `trainer_state`, `log_extra` and `log_metric`, and returns one number per completion, or None to
leave that completion out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..utils.files import read_lines

Row = Mapping[str, Any]
Rows = Sequence[Row]
RewardFunction = Callable[..., Sequence[float | None] | Coroutine[Any, Any, Sequence[float | None]]]
Message = dict[str, str]


@dataclass(frozen=True)
class Task:
    """A built-in task.

    `load` makes the training rows and the test rows. `rewards` are optimized; `gold_metrics` are measured on the center
    at evaluation and never optimized: they say what is meant, the first of them by itself (a sample passes when it is
    1), and fall when the reward is hacked. `reference` gives a completion that must score `full_marks` with every
    reward and 1 with every gold metric; `hacks` are completions that some gold metric (or, where there is none, the
    reward) must score 0. `configure` makes a variant of the task from the setting `task_args`. `adapt` makes rows of
    the task from those of a user's dataset, whose columns are called otherwise; None: they have the task's columns.
    """

    name: str
    load: Callable[[], tuple[Rows, Rows]]
    rewards: tuple[RewardFunction, ...]
    reference: Callable[[Row], str]
    full_marks: float
    gold_metrics: tuple[RewardFunction, ...] = ()
    hacks: tuple[Callable[[Row], str], ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    configure: Callable[..., Task] | None = None
    adapt: Callable[[Rows], Rows] | None = None

    def with_args(self, args: Mapping[str, Any]) -> Task:
        """The task as `task_args` say. Raises ConfigError for those that it does not have."""
        if not args:
            return self
        if self.configure is None:
            raise ConfigError(f"task_args: the task {self.name} has none: leave them out.")
        known = inspect.signature(self.configure).parameters
        if wrong := [name for name in args if name not in known]:
            raise ConfigError(f"task_args: the task {self.name} has no {wrong[0]!r}; it has: {', '.join(known)}.")
        if missing := [name for name in self.required_args if name not in args]:
            raise ConfigError(f"task_args: the task {self.name} needs {missing[0]!r}.")
        return self.configure(**args)

    @property
    def required_args(self) -> list[str]:
        """What `task_args` must say: without it the task has no rows."""
        parameters = inspect.signature(self.configure).parameters.values() if self.configure else ()
        return [p.name for p in parameters if p.default is p.empty]

    @cached_property
    def _rows(self) -> tuple[Rows, Rows]:
        return self.load()

    @property
    def train(self) -> Rows:
        """Rows to train on."""
        return self._rows[0]

    @property
    def test(self) -> Rows:
        """Held-out rows, to evaluate on."""
        return self._rows[1]


def text_of(completion: str | Sequence[Mapping[str, str]]) -> str:
    """The text of a completion: itself, or the content of its last message when conversational."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def user(content: str) -> list[Message]:
    """A conversational prompt of one user message."""
    return [{"role": "user", "content": content}]


def words_of(text: str) -> list[str]:
    """Its words, in lower case and without punctuation."""
    return re.findall(r"\w+", text.lower())


def read_rows(name: str, ask: Callable[[Row], str]) -> tuple[Rows, Rows]:
    """Training and test rows: the lines of `NAME.jsonl` in this folder, by their `split`; `ask` words the prompt."""
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for line in read_lines(Path(__file__).with_name(f"{name}.jsonl")):
        rows[line.pop("split")].append({**line, "prompt": user(ask(line))})
    return rows["train"], rows["test"]
