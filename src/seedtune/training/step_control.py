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
from .guard import MAX_STEP_KL

log = logging.getLogger(__name__)

#: How much sigma may change when it is measured again.
_MOST_CHANGE = 2.0
#: Members that lose more than so many times what noise makes pairs differ by are broken by it: sigma is made smaller.
_COSTLY, _SMALLER = 2.0, 0.7
#: Tokens of each kind of text on which steps are measured: KL on half of the texts of a calibration is within a fifth
#: of that on all of them (LOG.md).
_ENOUGH = 64
#: A step of a fixed learning rate is measured where it would pass a bound of the guard if it were so many times as
#: large as predicted; and the distance from the base model, where a glance finds this share of `max_kl`.
_CAUTION, _NEAR = 4.0, 0.5


class StepMeter:
    """Measures how far the center is from what it was: KL per token, teacher-forced on the center's completions of a
    few prompts and on ordinary passages, the larger of both, by a forward pass each. For engines in this process.

    Of each kind, the first texts that hold `_ENOUGH` tokens together are read.
    """

    def __init__(self, engine: HFEngine, probes: Sequence[Probe]) -> None:
        self.engine, self.texts = engine, [_enough(probe) for probe in probes]
        self.first = self._read(self.texts)
        self._before: list[torch.Tensor] | None = self.first

    def before_step(self) -> None:
        """The next step is to be measured."""
        self._before = self._before or self._read(self.texts)

    def after_step(self) -> tuple[float, float]:
        """KL of the center from what it was before the step, and from what it was at first."""
        now, before = self._read(self.texts), self._before
        assert before is not None, "before_step comes first"
        self._before = now
        return _largest_kl(now, before), _largest_kl(now, self.first)

    def skip(self) -> None:
        """The center was changed by something else than a step that is measured."""
        self._before = None

    def distance(self) -> float:
        """KL of the center from what it was at first."""
        return _largest_kl(self._read(self.texts), self.first)

    def glance(self) -> float:
        """The same, on one text of each kind."""
        now = self._read([(prompts[:1], completions[:1]) for prompts, completions in self.texts])
        return _largest_kl(now, [first[: len(one)] for one, first in zip(now, self.first, strict=True)])

    def _read(self, texts: Sequence[Probe]) -> list[torch.Tensor]:
        return [self.engine.distributions(CENTER, *each) for each in texts]


def _enough(probe: Probe) -> Probe:
    """The first texts of a probe that are not empty, until they hold enough tokens."""
    texts = [(prompt, completion) for prompt, completion in zip(*probe, strict=True) if completion.ids]
    tokens = np.cumsum([len(completion.ids) for _, completion in texts])
    some = texts[: int(np.searchsorted(tokens, _ENOUGH)) + 1]
    return [prompt for prompt, _ in some], [completion for _, completion in some]


def _largest_kl(of: list[torch.Tensor], from_: list[torch.Tensor]) -> float:
    return float(np.max([kl(a, b) for a, b in zip(of, from_, strict=True)]))  # NaN if one is


class StepControl:
    """`curvature`: KL per token of a member over sigma squared, NaN where it is not known; `follows_sigma`: sigma is
    measured again as the run goes on. Methods are called in the order of an iteration: `sigma_of`, `learning_rate`,
    `before`, `after`. `scale` of learning rates: what is left of them after returns to an earlier center.

    Steps that the run chooses are measured each, as each corrects the next: predictions can go wrong tenfold within
    three steps (LOG.md). Of a fixed learning rate, those are that are evaluated, predicted to be large, or taken where
    the center was last seen far from the base model; else there is a glance after every second.
    """

    def __init__(self, args: ESConfig, curvature: float, meter: StepMeter | None, *, follows_sigma: bool) -> None:
        self.args, self.meter, self.follows_sigma = args, meter, follows_sigma
        self.sigma = args.fixed_sigma
        self.size = StepSize(curvature)
        self.scale = 1.0
        self.pooled = Pooled()
        self.effect = 0.0
        self.distance = 0.0  # KL from the base model when that was last looked at
        self._reliability = math.nan
        self._coefficients_K: NDArray[np.float32] = np.empty(0, np.float32)
        self._predicted, self._measures = math.nan, False

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

    def before(self, learning_rate: float, *, evaluation_due: bool) -> None:
        """The step is about to be taken: predict it, and have it measured if it is to be."""
        self._predicted = step_kl(self._coefficients_K, learning_rate, self.size.curvature)
        bound = min(MAX_STEP_KL, self.args.max_kl)
        large = not _CAUTION * self._predicted * self.size.ratio <= bound  # or that is not known
        wanted = self.args.learning_rate == "auto" or evaluation_due or large or self._is_far()
        self._measures = self.meter is not None and wanted
        if self.meter and self._measures:
            self.meter.before_step()

    def after(self, t: int, rewards_M_P: Floats, *, prompts_vary: bool) -> dict[str, float]:
        """Metrics of the step of iteration t, now that it is taken."""
        found = {
            "es/reliability": self.pooled.value,
            "es/reliability_error": self.pooled.error,
            "es/mirrored_correlation": reliability.mirrored_correlation(rewards_M_P)
            if self.args.antithetic
            else math.nan,
            "es/reward_error": reliability.error_of_mean(rewards_M_P, prompts_vary=prompts_vary),
            "es/step_kl": self._predicted,
        }
        found = {name: value for name, value in found.items() if value == value}
        found |= (measured := self._measured(t))
        step, max_kl = measured.get("es/step_kl_measured", math.nan), self.args.max_kl
        distance = measured.get("es/kl_measured", 0.0) / max_kl if max_kl else 0.0
        self.size = self.size.after(self.args.num_units, self._reliability, self._predicted, step, distance)
        return found

    def _measured(self, t: int) -> dict[str, float]:
        """What is measured of the step, and of the center behind it: NaN where that computes no numbers."""
        if self.meter is None:
            return {}
        if self._measures:
            step, self.distance = self.meter.after_step()
            return {"es/step_kl_measured": step, "es/kl_measured": self.distance}
        self.meter.skip()
        if t % 2:
            return {}
        self.distance = self.meter.glance()
        if not self._is_far():
            return {}
        self.distance = self.meter.distance()
        return {"es/kl_measured": self.distance}

    def _is_far(self) -> bool:
        return not self.distance <= _NEAR * self.args.max_kl

    @property
    def follows(self) -> bool:
        """Whether steps depend on how far noise moves the center as it is now."""
        return self.follows_sigma or self.args.learning_rate == "auto"

    def went_back(self, scale: float) -> None:
        """The run has returned to an earlier center, to go on with learning rates `scale` times as large."""
        self.scale *= scale
        self.size = dataclasses.replace(self.size, room=1.0)  # how far away the center was that it left says nothing
        self.distance = 0.0
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
            "distance": self.distance,
            **size,
            **{f"pooled_{name}": value for name, value in pooled.items()},
        }

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from a state that an iteration recorded."""
        if "sigma" in state:
            self.sigma, self.effect = state["sigma"], state["effect"]
            self.distance = state.get("distance", 0.0)  # runs of before had none: they measured every step
            self.size = StepSize(**{f.name: state[f.name] for f in dataclasses.fields(StepSize)})
            self.pooled = Pooled(**{f.name: state[f"pooled_{f.name}"] for f in dataclasses.fields(Pooled)})
