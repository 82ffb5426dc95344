"""The tasks that come with Seedtune, by name."""

from __future__ import annotations

from collections.abc import Callable

from . import conciseness, countdown, keywords, one_liner, summary
from .base import Task

TASKS: dict[str, Callable[[], Task]] = {
    "conciseness": conciseness.task,
    "countdown": countdown.task,
    # Made to be hacked: each has a reward that a worse answer earns as well, and a truth that it does not.
    "keywords": keywords.task,
    "one_liner": one_liner.task,
    "summary": summary.task,
}


def builtin(name: str) -> Task:
    """A built-in task. Raises KeyError with the names there are."""
    if name not in TASKS:
        raise KeyError(f"no task {name!r}; there are: {', '.join(TASKS)}")
    return TASKS[name]()
