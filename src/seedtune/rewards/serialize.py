"""Reward functions, pickled for another process or another machine."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any

import cloudpickle

from ..errors import RewardError
from .function import Reward, asked_for
from .sources import is_own, with_sources


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


def carried(rewards: Sequence[Reward]) -> Functions:
    """To be called on other nodes: the user's own functions are pickled with the code of their modules, and sent with
    the sources of what these import (`sources`). Raises RewardError.
    """
    modules = [pickle_by_value(r.function) for r in rewards]
    own = [replace(r, source=r.unbound) if m else r for r, m in zip(rewards, modules, strict=True)]
    functions = Functions.of(own)
    return replace(functions, pickled=with_sources(functions.pickled, modules))


def pickle_by_value(function: Any) -> ModuleType | None:
    """The module of a function or a class, if it is the user's own, not of an installed package; it is pickled with
    that module's code from here on.
    """
    while inner := getattr(function, "func", None) or getattr(function, "__wrapped__", None):
        function = inner  # of a partial, of a decorated function
    module = sys.modules.get(getattr(function, "__module__", None) or type(function).__module__)
    if module is None or not is_own(module.__name__, getattr(module, "__file__", None)):
        return None
    cloudpickle.register_pickle_by_value(module)
    return module
