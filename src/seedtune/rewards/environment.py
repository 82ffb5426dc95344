"""The reward that an environment gives itself, by its method `get_reward` (as in TRL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class EnvironmentReward:
    """The reward function of a class of environments, called like the class. Completions in others have no reward."""

    def __init__(self, kind: str) -> None:
        self.__name__ = kind

    def __call__(
        self, completions: Sequence[Any], environment_rewards: Sequence[Mapping[str, float | None]], **_: Any
    ) -> list[float | None]:
        """What `get_reward` gave where the environment was stepped; None: it gave none, or it is of another class."""
        return [known.get(self.__name__) for known in environment_rewards]
