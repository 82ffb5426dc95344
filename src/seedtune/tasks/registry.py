"""The built-in tasks, and their reward functions and gold metrics, by name."""

from __future__ import annotations

from . import conciseness, countdown_ladder, keywords, math_problems, one_liner, reasoning_gym, summary, verifiers
from .arc import task as arc
from .base import RewardFunction, Task
from .code import hacks, unit_tests

#: The last four are made to be hacked: a worse completion earns the full reward, and the gold metric shows it.
_TASKS = (
    conciseness.TASK, countdown_ladder.TASK, math_problems.TASK, reasoning_gym.TASK, verifiers.TASK,
    unit_tests.TASK, arc.TASK, keywords.TASK, one_liner.TASK, summary.TASK, hacks.TASK,
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}

FUNCTIONS: dict[str, RewardFunction] = {f.__name__: f for task in _TASKS for f in (*task.rewards, *task.gold_metrics)}
_LADDER = countdown_ladder.configure()
FUNCTIONS |= {f.__name__: f for f in (*_LADDER.rewards, *_LADDER.gold_metrics)}
FUNCTIONS["summarised"] = FUNCTIONS["summarized"]  # its name in 0.1.0


def builtin(name: str) -> Task:
    """A built-in task. Raises KeyError with the names of all."""
    if name not in TASKS:
        raise KeyError(f"no task {name!r}; there are: {', '.join(TASKS)}")
    return TASKS[name]
