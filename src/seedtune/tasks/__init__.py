"""The built-in tasks: data, reward functions, and gold metrics that are never optimized. To add one, write a module
with a `TASK` and name it in `registry.py`.
"""

from .base import RewardFunction, Task
from .registry import TASKS, builtin

__all__ = ["TASKS", "RewardFunction", "Task", "builtin"]
