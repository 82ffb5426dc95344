"""Sigma and the learning rate of every iteration: as given, by a schedule, or chosen (`auto`); and what rewards tell
about the step: its reliability, and how far it moves the model.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..config.es_config import ESConfig
from ..engines.base import Engine, Prompt
from ..engines.hf.engine import HFEngine, kl
from ..es import reliability
from ..es.population import CENTER, Member
from ..es.reliability import Pooled
from ..es.schedule import factor
from ..es.shaping import Floats
from ..es.step_size import StepSize, most_of_a_step, step_kl
from ..es.update import directions
from .calibration import TARGET, Probe, member_kl

log = logging.getLogger(__name__)

#: How much sigma may change when it is measured again.
_MOST_CHANGE = 2.0
#: Members that lose more than so many times what noise makes pairs differ by are broken by it: sigma is made smaller.
_COSTLY, _SMALLER = 2.0, 0.7


class StepMeter:
    """Measures how far steps move the center: KL per token, teacher-forced on the center's completions of a few
    prompts and on ordinary passages, the larger of both, by a forward pass each. For engines in this process.
    """

    def __init__(self, engine: HFEngine, probes: Sequence[Probe]) -> None:
        self.engine, self.probes = engine, probes
        self.first = self._last = self._distributions()

    def measure(self) -> tuple[float, float]:
        """KL of the center from what it was at the last call, and from what it was at first."""
        now, before = self._distributions(), self._last
        self._last = now
        return _largest_kl(now, before), _largest_kl(now, self.first)

    def skip(self) -> None:
        """The center was changed by something else than a step."""
        self._last = self._distributions()

    def _distributions(self) -> list[torch.Tensor]:
        return [self.engine.distributions(CENTER, *each) for each in self.probes]


def _largest_kl(of: list[torch.Tensor], from_: list[torch.Tensor]) -> float:
    return float(np.max([kl(a, b) for a, b in zip(of, from_, strict=True)]))  # NaN if one is


class StepControl:
    """`curvature`: KL per token of a member over sigma squared, NaN where it is not known; `follows_sigma`: sigma is
    measured again as the run goes on. Methods are called in the order of an iteration: `sigma_of`, `learning_rate`,
    `after`. `scale` of learning rates: what is left of them after returns to an earlier center.
    """

    def __init__(self, args: ESConfig, curvature: float, meter: StepMeter | None, *, follows_sigma: bool) -> None:
        self.args, self.meter, self.follows_sigma = args, meter, follows_sigma
        self.sigma = args.fixed_sigma
        self.size = StepSize(curvature)
        self.scale = 1.0
        self.pooled = Pooled()
        self.effect = 0.0
        self._reliability = math.nan
        self._coefficients_K: NDArray[np.float32] = np.empty(0, np.float32)

    def sigma_of(self, t: int) -> float:
        """Sigma of iteration t."""
        return self.sigma * factor(self.args.sigma_schedule, t, self.args.max_steps)

    def learning_rate(
        self, t: int, members: Sequence[Member], rewards_M_P: Floats, coefficients_M: NDArray[np.float32]
    ) -> float:
        """alpha of iteration t, now that its rewards are known."""
        a = self.args
        effects_K_P = reliability.effects(rewards_M_P, a.antithetic)
        self.pooled, self.effect = self.pooled.add(effects_K_P), reliability.rms(effects_K_P)
        self._coefficients_K = directions(members, coefficients_M)[1]
        scheduled = self.scale * factor(a.lr_scheduler_type, t, a.max_steps, a.num_warmup_steps)
        if a.learning_rate != "auto":
            return a.alpha * scheduled
        self._reliability = self.pooled.with_prior(a.num_units)
        return scheduled * self.size.learning_rate(
            self._coefficients_K, a.num_units, self._reliability, most_of_a_step(a.max_steps)
        )

    def after(self, learning_rate: float, rewards_M_P: Floats, *, prompts_vary: bool) -> dict[str, float]:
        """Metrics of the step, now that it is taken."""
        predicted = step_kl(self._coefficients_K, learning_rate, self.size.curvature)
        measured, from_first = self.meter.measure() if self.meter else (math.nan, math.nan)
        found = {
            "es/reliability": self.pooled.value,
            "es/reliability_error": self.pooled.error,
            "es/mirrored_correlation": reliability.mirrored_correlation(rewards_M_P)
            if self.args.antithetic
            else math.nan,
            "es/reward_error": reliability.error_of_mean(rewards_M_P, prompts_vary=prompts_vary),
            "es/step_kl": predicted,
        }
        found = {name: value for name, value in found.items() if value == value}
        if self.meter:
            found |= {"es/step_kl_measured": measured, "es/kl_measured": from_first}
        if self.args.learning_rate == "auto":
            distance = from_first / self.args.max_kl if self.meter and self.args.max_kl else 0.0
            self.size = self.size.after(self.args.num_units, self._reliability, predicted, measured, distance)
        return found

    @property
    def follows(self) -> bool:
        """Whether steps depend on how far noise moves the center as it is now."""
        return self.follows_sigma or self.args.learning_rate == "auto"

    def went_back(self, scale: float) -> None:
        """The run has returned to an earlier center, to go on with learning rates `scale` times as large."""
        self.scale *= scale
        self.size = dataclasses.replace(self.size, room=1.0)  # how far away the center was that it left says nothing
        if self.meter:
            self.meter.skip()

    def follow(self, engine: Engine, prompts: Sequence[Prompt], evaluation: Mapping[str, float]) -> None:
        """Measure again how far members are from the center, as it is now, on its own completions; `sigma: auto`
        changes with it, and becomes smaller where noise costs members most of what the `evaluation` found.
        """
        costly = evaluation.get("es/noise_cost", 0.0) > _COSTLY * self.effect > 0
        kl_member = member_kl(engine, prompts, self.args.max_completion_length, self.sigma)
        if not 0 < kl_member < math.inf:
            return
        self.size = dataclasses.replace(self.size, curvature=kl_member / self.sigma**2)
        if self.follows_sigma:
            change = math.sqrt(TARGET / kl_member)
            if costly:
                change = min(change, _SMALLER)
            self.sigma = float(f"{self.sigma * min(max(change, 1 / _MOST_CHANGE), _MOST_CHANGE):.3g}")
            log.info("sigma is %g from now on: at the one before, members were %.3g nats per token from the center%s.",
                     self.sigma, kl_member, ", and earned far less" if costly else "")  # fmt: skip

    def state(self) -> dict[str, float]:
        """What the next iterations depend on."""
        size, pooled = dataclasses.asdict(self.size), dataclasses.asdict(self.pooled)
        return {
            "sigma": self.sigma,
            "effect": self.effect,
            **size,
            **{f"pooled_{name}": value for name, value in pooled.items()},
        }

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from a state that an iteration recorded."""
        if "sigma" in state:
            self.sigma, self.effect = state["sigma"], state["effect"]
            self.size = StepSize(**{f.name: state[f.name] for f in dataclasses.fields(StepSize)})
            self.pooled = Pooled(**{f.name: state[f"pooled_{f.name}"] for f in dataclasses.fields(Pooled)})
