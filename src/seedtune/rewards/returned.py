"""What a reward function returned, as one number or None per completion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import Any


class NotRewards(ValueError):
    """It is not that; `row`: the completion whose value it is not, where it is one."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def rewards_of(returned: Any, count: int) -> list[float | None]:
    """A list (or another sequence, an array, an iterator, as TRL takes) of `count` finite numbers or Nones. Raises
    NotRewards, and whatever an iterator raises.
    """
    values = _listed(returned, count)
    if len(values) != count:
        many = f"more than {count}" if len(values) > count and not hasattr(returned, "__len__") else len(values)
        raise NotRewards(
            f"returned {many} values for {count} completions; it must return one for each, in the same order (None "
            "leaves a completion out)."
        )
    rewards = [None if value is None else number(value) for value in values]
    for row, (value, reward) in enumerate(zip(values, rewards, strict=True)):
        if reward is not None and not math.isfinite(reward):
            raise NotRewards(
                f"returned {shown(value)} ({type(value).__name__}); a reward must be a finite number, or None to leave "
                "the completion out.",
                row,
            )
    return rewards


def _listed(returned: Any, count: int) -> list[Any]:
    """At most one more than `count` values: an iterator may have no end."""
    if isinstance(returned, Iterable) and not isinstance(returned, str | bytes | bytearray | Mapping | Set):
        try:
            values = iter(returned)
        except TypeError:
            pass  # a tensor without dimensions is Iterable by its class
        else:
            return list(returned) if hasattr(returned, "__len__") else list(islice(values, count + 1))
    raise NotRewards(
        f"returned {shown(returned)} ({type(returned).__name__}); it must return a list with one number (or None) for "
        f"each of the {count} completions."
    )


def number(value: Any) -> float:
    """A number of Python's, NumPy's, torch's, a Decimal, or an array of one element; NaN: it is none."""
    if type(value).__name__ == "MaskedConstant":  # of NumPy's masked arrays; its item() is 0
        return math.nan
    try:
        value = value.item() if hasattr(value, "item") else value
        return math.nan if isinstance(value, str | bytes | bytearray) else float(value)
    except Exception:  # of whatever kind of object the user has
        return math.nan


def shown(value: Any, limit: int = 300) -> str:
    """Its repr, shortened."""
    try:
        text = repr(value)
    except Exception:  # of whatever kind of object the user has
        text = object.__repr__(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
