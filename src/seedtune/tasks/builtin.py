"""The tasks that come with Seedtune, by name."""

from __future__ import annotations

from collections.abc import Callable

from . import conciseness, countdown
from .base import Task

TASKS: dict[str, Callable[[], Task]] = {"conciseness": conciseness.task, "countdown": countdown.task}


def builtin(name: str) -> Task:
    """A built-in task. Raises KeyError with the names there are."""
    if name not in TASKS:
        raise KeyError(f"no task {name!r}; there are: {', '.join(TASKS)}")
    return TASKS[name]()
