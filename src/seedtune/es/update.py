"""Coefficients to a step. The arithmetic is float32 in a fixed order, so every replica gets the same bits.

`apply` is the reference, on whole numpy arrays; `noise.cpu.update` does the same in one fused pass, and a test holds
them equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .population import Member

F32 = NDArray[np.float32]

#: How many float32 arrays of state each rule keeps for every weight.
_MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2}
OPTIMIZERS = tuple(_MOMENTS)


@dataclass(frozen=True)
class UpdateRule:
    """How a search direction g becomes a step.

    * `sgd`, the paper's: theta <- theta + alpha * g (Qiu et al., Algorithm 2; 1/sigma digested into alpha).
    * `momentum`: m <- beta1 m + g; theta <- theta + alpha * m (Polyak's heavy ball).
    * `adam`: Kingma and Ba, arXiv 1412.6980, Algorithm 1, on ascent directions.
    * `weight_decay` lambda: theta <- theta - alpha lambda theta, decoupled (Loshchilov and Hutter, arXiv 1711.05101);
      with `anchored`, toward the base model: - alpha lambda (theta - theta_0) (arXiv 2605.30148).
    """

    optimizer: str = "sgd"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    anchored: bool = False

    @property
    def moments(self) -> int:
        """How many float32 arrays of state the rule keeps for each weight."""
        return _MOMENTS[self.optimizer]

    def corrections(self, steps: int) -> tuple[float, float]:
        """Adam's 1 - beta^t after `steps` updates, by repeated multiplication (a power may round differently)."""
        b1 = b2 = 1.0
        for _ in range(steps):
            b1, b2 = b1 * self.beta1, b2 * self.beta2
        return (1.0 - b1, 1.0 - b2) if self.optimizer == "adam" else (1.0, 1.0)


def coefficients(members: Sequence[Member], fitness_M: NDArray[np.float64]) -> F32:
    """c_n = Z_n s_n / N: what multiplies the noise of member n. Qiu et al., Algorithm 2, line "update"."""
    signs = np.array([m.sign for m in members], dtype=np.float64)
    return (fitness_M * signs / len(members)).astype(np.float32)


def directions(members: Sequence[Member], coefficients_M: F32) -> tuple[list[int], F32]:
    """Pairs and their coefficients, in member order; members that share noise are added up, zeros are left out."""
    total: dict[int, np.float32] = {}
    for member, c in zip(members, coefficients_M, strict=True):
        total[member.pair] = np.float32(total.get(member.pair, np.float32(0)) + c)
    kept = {pair: c for pair, c in total.items() if c != 0}
    return list(kept), np.array(list(kept.values()), dtype=np.float32)


def weighted_noise(noise_K: Sequence[F32], coefficients_K: F32) -> F32:
    """g = sum over k, in order, of c_k * noise_k; multiply and add are two float32 roundings."""
    g = np.zeros_like(noise_K[0])
    for noise, c in zip(noise_K, coefficients_K, strict=True):
        g = g + c * noise
    return g


def apply(
    theta: F32,
    g: F32,
    rule: UpdateRule,
    learning_rate: float,
    steps: int,
    m: F32 | None = None,
    v: F32 | None = None,
    anchor: F32 | None = None,
) -> tuple[F32, F32 | None, F32 | None]:
    """One update; returns the new theta, m, v. `steps` counts updates, this one included; `learning_rate` is alpha."""
    f = np.float32
    b1, b2 = f(rule.beta1), f(rule.beta2)
    c1, c2 = (f(c) for c in rule.corrections(steps))
    step = g
    if rule.optimizer == "adam":
        assert m is not None
        assert v is not None
        m = b1 * m + (f(1) - b1) * g
        v = b2 * v + (f(1) - b2) * (g * g)
        step = (m / c1) / (np.sqrt(v / c2) + f(rule.epsilon))
    elif rule.optimizer == "momentum":
        assert m is not None
        m = b1 * m + g
        step = m
    if rule.weight_decay:
        step = step - f(rule.weight_decay) * (theta - (anchor if anchor is not None else f(0)))
    return theta + f(learning_rate) * step, m, v
