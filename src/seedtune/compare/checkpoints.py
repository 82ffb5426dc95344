"""Budget and checkpoints of methods whose trainer is a transformers `Trainer`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..errors import ConfigError
from .context import MethodContext


def num_steps(context: MethodContext, per_step: int, what: str) -> int:
    """How many whole steps of `per_step` completions the budget allows. Raises ConfigError when it allows none."""
    if per_step > context.num_completions:
        raise ConfigError(f"{what} is {per_step} completions, more than the budget of {context.num_completions}.")
    return context.num_completions // per_step


class Checkpoints(TrainerCallback):
    """Starts the clock at the first step, and writes checkpoints with `save` when they are due and at the last step."""

    def __init__(self, context: MethodContext, per_step: int, save: Callable[[Path], Any]) -> None:
        self.context, self.per_step, self.save = context, per_step, save

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.context.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        num_completions = state.global_step * self.per_step
        if self.context.due(num_completions) or state.global_step == state.max_steps:
            self.context.checkpoint(num_completions, int(state.num_input_tokens_seen), self.save)
