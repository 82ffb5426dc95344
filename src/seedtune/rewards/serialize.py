"""Reward functions, pickled for another process or another machine."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import cloudpickle

from ..errors import RewardError
from .function import Reward, asked_for


@dataclass(frozen=True)
class Functions:
    """Names of reward functions, the pickled functions, and what any of them asks for (see `ON_REQUEST`)."""

    names: tuple[str, ...]
    pickled: bytes
    asks: frozenset[str] = frozenset()

    @staticmethod
    def of(rewards: Sequence[Reward]) -> Functions:
        """Raises RewardError for one that cannot be pickled."""
        try:
            return Functions(tuple(r.name for r in rewards), cloudpickle.dumps(list(rewards)), asked_for(rewards))
        except Exception as e:
            raise RewardError(
                f"the reward functions cannot be sent to a scoring process: {e}\n"
                "Set reward_workers: 0 to call them in this process (then without a time limit)."
            ) from None

    @cached_property
    def key(self) -> str:
        """A short hash, to refer to functions that were sent before."""
        return hashlib.sha256(self.pickled).hexdigest()[:16]


@lru_cache(maxsize=4)
def load(pickled: bytes) -> list[Reward]:
    """Unpickle, in the process that calls them; bytes must come from this run. Raises RewardError."""
    try:
        rewards: list[Reward] = cloudpickle.loads(pickled)
        return rewards
    except Exception as e:
        raise RewardError(
            f"the reward functions cannot be loaded in a scoring process: {type(e).__name__}: {e}. What they import "
            "must be installed on every node."
        ) from e


def by_value(rewards: Sequence[Reward]) -> list[Reward]:
    """The user's own functions, pickled with the code of their modules, which other nodes may lack; others by name."""
    return [replace(r, source=r.function) if pickle_by_value(r.function) else r for r in rewards]


def pickle_by_value(function: Any) -> bool:
    """Whether a function or a class is the user's own, not of an installed package. Its module is then pickled, too."""
    while inner := getattr(function, "func", None) or getattr(function, "__wrapped__", None):
        function = inner  # of a partial, of a decorated function
    module = sys.modules.get(getattr(function, "__module__", None) or type(function).__module__)
    file = getattr(module, "__file__", None)
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")}
    if module is None or file is None or module.__name__.split(".")[0] == "seedtune":
        return False
    if any(place in Path(file).resolve().parents for place in installed):
        return False
    cloudpickle.register_pickle_by_value(module)
    return True
