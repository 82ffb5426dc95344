"""`sigma: auto`: how far members' behaviour moves with sigma, measured before the first iteration.

For a few sigmas, a few members are asked what they think of the centre's own greedy answers. KL(member || centre), the
mean over tokens, says how differently a member would have written; it grows like sigma squared. Sigma is set where it
reaches `TARGET`, read off between the measured points (a line in log-log).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from .engines.base import Engine, Prompt, Sampling
from .errors import ConfigError
from .es.population import Population

#: Nats a token: between the 0.15 (rank 1) and the 0.28 (full rank) at the sigmas that learned best (LOG.md).
TARGET = 0.2
SIGMAS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
_MEMBERS, _PROMPTS, _TOKENS = 4, 4, 32


@dataclass(frozen=True)
class Calibration:
    """KL a token at each measured sigma, and the sigma at which it is `target`."""

    sigmas: tuple[float, ...]
    divergences: tuple[float, ...]
    target: float
    sigma: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """A small table."""
        rows = [f"  {s:<8g} {kl:10.4f}" for s, kl in zip(self.sigmas, self.divergences, strict=True)]
        return ["  sigma    KL a token", *rows, f"  sigma {self.sigma:g} is where KL is {self.target:g}."]


def calibrate(engine: Engine, prompts: Sequence[Prompt], max_completion_length: int) -> Calibration:
    """Measure with members of iteration 0, which training never uses. Raises ConfigError when no sigma will do."""
    asked = list(prompts[:_PROMPTS])
    sampling = Sampling(min(_TOKENS, max_completion_length))
    engine.become([None] * len(asked))
    texts = engine.generate(asked, sampling, 0)
    members = Population(_MEMBERS, antithetic=True).ask(0)
    divergences = []
    for sigma in SIGMAS:
        engine.set_sigma(sigma)
        divergences.append(engine.divergence(members, asked, texts))
    engine.restore()
    return Calibration(SIGMAS, tuple(divergences), TARGET, _where(SIGMAS, divergences, TARGET))


def _where(sigmas: Sequence[float], divergences: Sequence[float], target: float) -> float:
    """The first sigma at which the divergence reaches the target, to two digits."""
    points = list(zip(sigmas, divergences, strict=True))
    for (s0, kl0), (s1, kl1) in pairwise(points):
        if kl0 < target <= kl1:
            part = math.log(target / max(kl0, 1e-12)) / math.log(kl1 / max(kl0, 1e-12))
            return float(f"{math.exp(math.log(s0) + part * math.log(s1 / s0)):.2g}")
    raise ConfigError(
        f"sigma: auto finds no sigma at which members differ from the centre by {target:g} nats a token (measured: "
        f"{', '.join(f'{kl:.3g} at {s:g}' for s, kl in points)}). Set sigma yourself."
    )
