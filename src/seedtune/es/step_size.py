"""The size of a step, from how reliable its direction is and how far it would move the model's behavior.

A member at sigma moves the model's behavior by some KL per token. An update of units with coefficients c_k moves it by
(alpha / sigma)^2 sum c_k^2 times that, as long as KL grows with the square of the distance: units' noises are
independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

#: Directions along which a fine-tune gains, by order of magnitude: a step of M units of reliability r can close
#: M r / (M r + D0) of what is left to gain.
D0 = 50.0
#: Nats per token that a step with a certain direction may take at first, and the least that this falls to.
FIRST_BUDGET, LEAST_BUDGET = 0.5, 0.05
#: Nats per token that the steps of a run may take together: most of a step is noise, which gains nothing and which no
#: later step takes back, so that it adds up. And the least that each may take, however many there are.
RUN_BUDGET, LEAST_STEP = 0.4, 0.001
#: How far measured KL may correct the predicted one.
_LEAST_RATIO, _LARGEST_RATIO = 0.25, 16.0


def step_kl(coefficients_K: NDArray[np.float32], learning_rate: float, curvature: float) -> float:
    """KL, in nats per token, that an update moves the center by, predicted. `curvature`: a member's KL over sigma
    squared.
    """
    return curvature * learning_rate**2 * _sum_of_squares(coefficients_K)


def most_of_a_step(max_steps: int) -> float:
    """KL per token that each of so many steps may take."""
    return max(RUN_BUDGET / max_steps, LEAST_STEP)


def _sum_of_squares(coefficients_K: NDArray[np.float32]) -> float:
    return float(np.sum(coefficients_K.astype(np.float64) ** 2))


@dataclass(frozen=True)
class StepSize:
    """`learning_rate: auto`: what is carried from one iteration to the next. `curvature`: KL per token of a member from
    the center, over sigma squared; `budget`: K, nats per token for a step with a certain direction; `ratio`: measured
    over predicted KL of steps so far; `room`: what is left, of 1, until the center is as far from the base model as it
    may be.
    """

    curvature: float
    budget: float = FIRST_BUDGET
    ratio: float = 1.0
    room: float = 1.0

    def learning_rate(
        self, coefficients_K: NDArray[np.float32], units: int, reliability: float, most: float = math.inf
    ) -> float:
        """alpha, such that the step's KL is K M r / (M r + D0) times the room left, or the `most` it may be; 0 where
        nothing differed.
        """
        squares = _sum_of_squares(coefficients_K)
        allowed = min(self.budget * self._share(units, reliability), most) * self.room
        return math.sqrt(allowed / (self.curvature * self.ratio * squares)) if squares else 0.0

    def after(
        self, units: int, reliability: float, predicted: float, measured: float, distance: float = 0.0
    ) -> StepSize:
        """For the next iteration: the budget shrinks by what the step was expected to close, and the prediction is
        corrected by half (of its logarithm) toward what was measured; NaN: that is not known. `distance`: KL from the
        base model, as a share of the most that is allowed.
        """
        budget = max(self.budget * (1.0 - self._share(units, reliability)), LEAST_BUDGET)
        ratio = self.ratio
        if predicted > 0 and measured > 0:
            ratio = math.sqrt(self.ratio * min(max(measured / predicted, _LEAST_RATIO), _LARGEST_RATIO))
        return replace(self, budget=budget, ratio=ratio, room=min(max(1.0 - distance, 0.0), 1.0))

    def _share(self, units: int, reliability: float) -> float:
        r = min(max(reliability, 0.0), 1.0) if reliability == reliability else 0.0
        return units * r / (units * r + D0)
