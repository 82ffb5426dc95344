"""`reward_weights` that change over a run: stages, each with its weights and until when they count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from .values import coerce, parse_rule


def stages_of(reward_weights: Sequence[Any] | None) -> list[dict[str, Any]]:
    """The stages, of which there is one where weights do not change; its weights may be None."""
    given = list(reward_weights or [])
    return given if given and isinstance(given[0], dict) else [{"weights": reward_weights}]


def check_stages(reward_weights: Sequence[Any] | None) -> None:
    """Raises ConfigError for stages of reward_weights that are none, or that cannot follow one another."""
    stages = [stage for stage in reward_weights or [] if isinstance(stage, dict)]
    if stages and len(stages) < len(reward_weights or []):
        raise ConfigError("reward_weights is a list of numbers or a list of stages, not of both.")
    for n, stage in enumerate(stages, 1):
        if not {"weights"} <= set(stage) <= {"weights", "until"}:
            raise ConfigError(f"reward_weights: stage {n} has weights and until, and nothing else; got {stage!r}.")
        coerce("reward_weights: weights", "list[float]", stage["weights"])
        until = stage.get("until")
        if (until is None) != (n == len(stages)):
            raise ConfigError(
                f"reward_weights: stage {n} of {len(stages)}: every stage but the last has `until`, an iteration or a "
                "rule such as 'eval/reward > 0.5'."
            )
        if isinstance(until, str):
            parse_rule(until, "reward_weights")
        elif until is not None and (isinstance(until, bool) or not isinstance(until, int) or until < 1):
            raise ConfigError(f"reward_weights: until is an iteration, from 1, or a rule; got {until!r}.")
