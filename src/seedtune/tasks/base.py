"""What a task is: rows to train on, rows held out, how completions are rewarded, and what is truly meant.

A reward function has TRL's signature: it is called by keyword with `prompts`, `completions`, `completion_ids`, every
column of the dataset, `trainer_state`, `log_extra` and `log_metric`, and returns one number a completion, or None to
leave that completion out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Rows = Sequence[Row]
RewardFunction = Callable[..., Sequence[float | None]]
Message = dict[str, str]


@dataclass(frozen=True)
class Task:
    """A built-in task.

    `rewards` are optimised; `truths` are measured on the centre at evaluation and never optimised: they say what is
    meant, the first of them by itself (a sample passes when it is 1), and fall when the reward is hacked. `gold` gives
    a completion that must score `full_marks` with every reward and 1 with every truth; `hacks` are completions that
    some truth (or, with no truth, the reward) must score 0.
    """

    name: str
    train: Rows
    test: Rows
    rewards: tuple[RewardFunction, ...]
    gold: Callable[[Row], str]
    full_marks: float
    truths: tuple[RewardFunction, ...] = ()
    hacks: tuple[Callable[[Row], str], ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


def text_of(completion: str | Sequence[Mapping[str, str]]) -> str:
    """The text of a completion: itself, or the content of its last message when conversational."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def user(content: str) -> list[Message]:
    """A conversational prompt of one user message."""
    return [{"role": "user", "content": content}]
