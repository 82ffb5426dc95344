"""Weights of reward functions that change during a run: dense rewards at first, the one that is meant at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.es_config import ESConfig
from ..config.values import OPERATORS, parse_rule
from ..evaluation import statistics
from ..rewards.function import Reward, full_weights

log = logging.getLogger(__name__)


class RewardSchedule:
    """The stages of `reward_weights`. Members earn by the weights of the current stage; evaluations always go by the
    last one's, so that they can be compared over the whole run.

    A stage ends after the iteration that `until` gives, or after the first evaluation for which its rule holds.
    """

    def __init__(self, args: ESConfig, rewards: Sequence[Reward]) -> None:
        self.stages = [full_weights(stage["weights"], rewards) for stage in args.reward_stages]
        self.until = [stage.get("until") for stage in args.reward_stages]
        self.stage = 0

    @property
    def weights(self) -> list[float]:
        """Of members, in the next iteration."""
        return self.stages[self.stage]

    @property
    def final_weights(self) -> list[float]:
        """Of evaluations."""
        return self.stages[-1]

    @property
    def is_last(self) -> bool:
        return self.stage == len(self.stages) - 1

    def after(self, t: int, evaluation: Mapping[str, Any]) -> bool:
        """After iteration t and its evaluation, if there was one: whether another stage begins. Raises ConfigError for
        a metric that evaluations lack.
        """
        before = self.stage
        while not self.is_last and self._ends(self.until[self.stage], t, evaluation):
            self.stage += 1
        if self.stage > before:
            log.info("From iteration %d on, reward_weights are %s.", t + 1, self.weights)
        return self.stage > before

    @staticmethod
    def _ends(until: int | str | None, t: int, evaluation: Mapping[str, Any]) -> bool:
        if isinstance(until, int):
            return t >= until
        if not evaluation:
            return False
        metric, operator, bound = parse_rule(str(until), "reward_weights")
        value = statistics.metric(evaluation, metric, "reward_weights")
        return bool(OPERATORS[operator](value, bound))

    def state(self) -> dict[str, float]:
        """What the next iterations depend on; nothing where weights do not change."""
        return {"reward_stage": float(self.stage)} if len(self.stages) > 1 else {}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.stage = int(state.get("reward_stage", 0))
