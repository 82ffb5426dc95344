"""Replicas at work, as the trainer sees them: they run rollouts and hold the center. Here the fleet of one; of many:
`distributed.ray_fleet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.prompts import PromptBatch
from ..engines.base import Engine
from ..es.population import Population
from ..rewards.function import Reward
from ..rewards.scorer import Scorer
from .runner import LocalExecutor, RolloutRunner, RolloutSpec

#: Iteration, coefficients [members], learning rate.
Update = tuple[int, NDArray[np.float32], float]


class Fleet(Protocol):
    """One replica or many; results do not depend on how many."""

    rollouts: RolloutRunner

    def start(self, batch: PromptBatch) -> None:
        """A run begins, whose iterations have as many prompts as this batch."""

    def scorer(self, rewards: Sequence[Reward], *, workers: int | None, timeout: float) -> Scorer:
        """Where rewards are computed; `timeout` is in seconds. Raises RewardError for functions that cannot be sent
        there.
        """

    def update(self, iteration: int, coefficients: NDArray[np.float32], learning_rate: float) -> float:
        """Every replica applies an iteration's update from seeds and coefficients [members]. Returns the norm of the
        step.
        """

    def reset(self) -> None:
        """Be the base model again, as before the first update. Raises ModelError where it was not kept."""

    def set_sigma(self, sigma: float) -> None:
        """Members are made with this noise scale from now on."""

    def digest(self) -> str:
        """The digest of the center, which all replicas hold."""

    def load_state(self, file: Path, digest: str, updates: Sequence[Update]) -> bool:
        """Take over the state that was saved after these updates, as `Weights.load_state`."""

    def metrics(self) -> dict[str, float]:
        """Metrics of the replicas since the last iteration."""

    def close(self) -> None:
        """Let replicas go."""


class LocalFleet:
    """A `Fleet` of one replica, in this process."""

    def __init__(self, engine: Engine, population: Population, spec: RolloutSpec) -> None:
        self.engine, self.population = engine, population
        self._executor = LocalExecutor(engine, spec)
        self.rollouts = RolloutRunner(self._executor, spec, mixes_members=engine.mixes_members)

    def start(self, batch: PromptBatch) -> None:
        """Nothing to check."""

    def scorer(self, rewards: Sequence[Reward], *, workers: int | None, timeout: float) -> Scorer:
        return Scorer(rewards, workers=workers, timeout=timeout)

    def update(self, iteration: int, coefficients: NDArray[np.float32], learning_rate: float) -> float:
        return self.engine.update(self.population.ask(iteration), coefficients, learning_rate)

    def reset(self) -> None:
        self.engine.reset()

    def set_sigma(self, sigma: float) -> None:
        self.engine.set_sigma(sigma)

    def digest(self) -> str:
        return self.engine.digest()

    def load_state(self, file: Path, digest: str, updates: Sequence[Update]) -> bool:
        return self.engine.load_state(file, digest, len(updates))

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._executor.close()
