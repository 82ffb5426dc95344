"""What is given as a reward function, elsewhere or by mistake, and is none here: what it is, and what to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RewardError


def check_given(funcs: Any) -> None:
    """Raise RewardError for what is no function and no list of functions."""
    if isinstance(funcs, Mapping):
        raise RewardError(
            "reward functions are a list of functions, not a mapping: [f, g], called by their own names; how much each "
            "counts is reward_weights: [1.0, 0.5] in the settings."
        )


def check_one(source: Any) -> None:
    """Raise RewardError for what is not called as a reward function is."""
    if isinstance(source, type):
        name = source.__name__
        raise RewardError(f"a reward function is a callable, and {name} is a class: give an object of it, {name}(...).")
    if any(cls.__module__ == "transformers.modeling_utils" for cls in type(source).__mro__):
        raise RewardError(
            f"a reward function is a callable, and {type(source).__name__} is a model: give a function that tokenizes "
            "completions, runs the model, and returns its scores as a list (docs/guides/rewards.md)."
        )
    if not callable(source) and not isinstance(source, str):
        pair = isinstance(source, tuple | list) and len(source) == 2 and callable(source[0])
        weight = " How much each counts is reward_weights in the settings." if pair else ""
        raise RewardError(f"a reward function is a callable, or a text that names one; got {source!r}.{weight}")
