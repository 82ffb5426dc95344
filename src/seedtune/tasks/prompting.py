"""How a question becomes a prompt: as a message to a model that follows instructions, or behind solved examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigError
from .base import user

#: chat: a message with the question and how to answer, behind examples as earlier turns. few_shot: a text that goes on
#: from solved examples.
STYLES = ("chat", "few_shot")


def check_style(style: Any, styles: Sequence[str] = STYLES) -> None:
    """Raise ConfigError for one that there is not."""
    if style not in styles:
        raise ConfigError(f"task_args: style is one of {', '.join(styles)}; got {style!r}.")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise ConfigError for what is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"task_args: {name} is a whole number of at least {least}, got {value!r}.")


def asker(style: str, instruction: str, solved: Sequence[tuple[str, str]]) -> Callable[[str], Any]:
    """What words a question. `solved`: questions with the completions that are wanted; `instruction`: how to answer."""
    if style == "few_shot":
        before = "".join(f"Question: {question}\nAnswer: {completion}\n\n" for question, completion in solved)
        return lambda question: f"{before}Question: {question}\nAnswer:"
    turns = [
        message
        for question, completion in solved
        for message in (*user(f"{question}\n\n{instruction}"), {"role": "assistant", "content": completion})
    ]
    return lambda question: [*turns, *user(f"{question}\n\n{instruction}")]
