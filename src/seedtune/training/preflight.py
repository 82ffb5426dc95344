"""Before a run: will it learn? A few hundred completions of members, of which nothing is kept but their rewards, say
how reliable rewards are, and with that how many members a step takes. Nothing is written.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config.auto import AUTO
from ..config.es_config import ESConfig
from ..data.prompts import PromptBatch
from ..engines.base import Engine
from ..es import reliability
from ..es.population import CENTER, Population
from ..es.reliability import Floats, Variances
from ..es.step_size import D0
from ..evaluation.evaluate import noop
from ..rewards.scorer import Scorer
from ..rollout.rollout_func import RolloutFunc
from ..rollout.runner import LocalExecutor, OnRows, RolloutRunner
from ..tools.toolset import ToolSet
from . import factory
from .calibration import Calibration, calibrate

#: Pairs and prompts of the table of rewards: it is as good at telling S from V as its smaller side allows.
PAIRS, PROMPTS = 32, 8
#: Units times reliability: a step closes M r / (M r + D0) of what is left to gain. With the first a run of a few dozen
#: iterations gets somewhere; below the second not within hundreds.
_ENOUGH, _TOO_LITTLE = 2.0, 0.5
#: Members that are recommended at most.
_MOST_MEMBERS = 1024


@dataclass(frozen=True)
class Preflight:
    """What was measured, and what follows from it. `verdict`: will learn, may learn, or will not learn; `reasons` say
    why in whole sentences; `settings` are what is recommended.
    """

    verdict: str
    reasons: tuple[str, ...]
    settings: dict[str, Any]
    sigma: float
    completions: int
    seconds: float
    center_reward: float
    members_reward: float
    odd_variance: float
    even_variance: float
    mirrored_correlation: float
    variances: Variances
    reliability: float
    interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]
    seconds_per_iteration: float

    def lines(self) -> list[str]:
        """The report, as text."""
        (low, high), (least, most) = self.interval, self.gain_interval
        per_member = self.settings.get("prompts_per_member", PROMPTS)
        facts = [
            ("verdict", f"{self.verdict}. {' '.join(self.reasons)}"),
            ("completions", f"{self.completions} in {self.seconds:.0f} s, at sigma {self.sigma:g}"),
            ("reward", f"center {self.center_reward:.4g}, members {self.members_reward:.4g}"),
            (
                "reliability",
                f"{self.reliability:.2g} of a pair on {per_member} prompts (90 % interval {low:.2g} to {high:.2g}): "
                "the share of what pairs differ by that other prompts would show again",
            ),
            ("variance", f"odd {self.odd_variance:.3g}, of which steps follow a part; even {self.even_variance:.3g}"),
            (
                "a step",
                f"closes about {self.gain:.1%} of what is left to gain ({least:.1%} to {most:.1%}), in "
                f"{self.seconds_per_iteration:.0f} s",
            ),
        ]
        settings = [f"  {key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in
                    self.settings.items()]  # fmt: skip
        return [*(f"{name:12} {value}" for name, value in facts), "recommended settings:", *settings]


def preflight(
    engine: Engine,
    args: ESConfig,
    batch: PromptBatch,
    scorer: Scorer,
    reward_weights: Sequence[float],
    on_rows: OnRows = noop,
    tools: ToolSet | None = None,
    rollout_func: RolloutFunc | None = None,
) -> Preflight:
    """Decode and score pairs on the prompts of `batch`, and the center on the same. Raises ConfigError, RewardError."""
    began = time.perf_counter()
    calibration: Calibration | None = None
    if args.sigma == "auto":
        calibration = calibrate(engine, batch.prompts, args.max_completion_length)
        engine.set_sigma(calibration.sigma)
    sigma = calibration.sigma if calibration else args.fixed_sigma
    spec = factory.rollout_spec(args, tools=tools, rollout_func=rollout_func)
    executor = LocalExecutor(engine, spec)
    runner = RolloutRunner(executor, spec, mixes_members=engine.mixes_members)
    state = {"global_step": 0, "max_steps": args.max_steps}
    members = Population(2 * PAIRS, antithetic=True).ask(0)
    decoding = time.perf_counter()
    rewards_M_P = runner.run(members, batch, scorer, 0, state, on_rows).total_M_P(reward_weights)
    each = (time.perf_counter() - decoding) / rewards_M_P.size
    center_P = runner.run([CENTER], batch, scorer, 0, state, on_rows).total_M_P(reward_weights)[0]
    executor.close()
    found = judge(rewards_M_P, center_P, sigma, each, time.perf_counter() - began)
    return dataclasses.replace(found, completions=found.completions * args.num_generations)


def judge(rewards_M_P: Floats, center_P: Floats, sigma: float, seconds_each: float, seconds: float) -> Preflight:
    """From rewards_M_P of mirrored pairs and those of the center: numbers in, verdict out."""
    odd = reliability.odd_effects(rewards_M_P)
    even = reliability.even_effects(rewards_M_P)
    found = reliability.variances(odd)
    correlation = reliability.mirrored_correlation(rewards_M_P)
    settings = dict(AUTO, sigma=sigma)
    per_member = min(int(settings["prompts_per_member"]), rewards_M_P.shape[1])
    settings["prompts_per_member"] = per_member
    r = found.reliability(per_member)
    r = max(r, 0.0) if r == r else 0.0
    low, high = reliability.interval(odd, per_member) if found.units and odd.shape[1] > 1 else (0.0, 1.0)
    pairs = settings["population_size"] // 2
    verdict, reasons = _verdict(rewards_M_P, r, low, high, pairs)
    expected = r if low else (r + high) / 2  # where nothing was shown: the middle of what it may be
    if verdict != "will not learn" and pairs * expected < _ENOUGH:
        settings["population_size"] = _members_needed(expected)
    units: int = settings["population_size"] // 2

    def gain(reliability: float) -> float:
        return units * reliability / (units * reliability + D0)

    settings["max_steps"] = min(max(math.ceil(1.5 / max(gain(expected), 1e-3)), 8), 300)
    known = rewards_M_P[~np.isnan(rewards_M_P)]
    return Preflight(
        verdict,
        tuple(reasons),
        settings,
        sigma,
        rewards_M_P.size + center_P.size,
        seconds,
        _mean(center_P),
        float(known.mean()) if known.size else math.nan,
        _mean(odd**2),
        _mean(even**2),
        correlation,
        found,
        r,
        (low, high),
        gain(r),
        (gain(low), gain(high)),
        seconds_each * settings["population_size"] * per_member,
    )


def _verdict(rewards_M_P: Floats, r: float, low: float, high: float, pairs: int) -> tuple[str, list[str]]:
    known = rewards_M_P[~np.isnan(rewards_M_P)]
    if not known.size:
        return "will not learn", ["No completion was scored: reward functions returned None for all of them."]
    values, counts = np.unique(known, return_counts=True)
    common = float(values[counts.argmax()])
    if len(values) == 1:
        return "will not learn", [
            f"All {known.size} completions earned {common:.4g}: with no difference there is nothing to follow. Give "
            "partial credit, or prompts that the model sometimes gets right."
        ]
    odd = reliability.odd_effects(rewards_M_P)
    if not np.nansum(np.abs(odd)):
        return "will not learn", [
            "Rewards differ between prompts, but no two members of a pair ever differed: noise of this size changes "
            "nothing that is rewarded. Raise sigma, or give partial credit."
        ]
    others = known.size - int(counts.max())
    rare = [f"Only {others} of {known.size} completions earned anything but {common:.4g}: partial credit would help."]
    reasons = rare if others < 0.05 * known.size else []
    if pairs * high < _TOO_LITTLE:
        return "will not learn", [
            *reasons,
            f"What pairs differ by is noise: at most {high:.1%} of it would show again on other prompts, so that even "
            f"{_MOST_MEMBERS} members would not make a direction.",
        ]
    if pairs * low >= _ENOUGH:
        return "will learn", [*reasons, f"{2 * pairs} members per iteration are enough."]
    if not low:
        return "may learn", [
            *reasons,
            f"Of what pairs differ by, {known.size} completions do not tell signal from noise: up to {high:.0%} may be "
            "signal, or nothing. A run looks at many more; it hands back the base if nothing is gained.",
        ]
    if pairs * r >= _ENOUGH:
        return "may learn", [
            *reasons,
            f"{2 * pairs} members are enough if the reliability is what was measured; the interval allows for less.",
        ]
    return "may learn", [*reasons, f"It takes about {_members_needed(r)} members per iteration: rewards are noisy."]


def _members_needed(r: float) -> int:
    """Pairs times reliability are enough with so many: a power of two."""
    return min(1 << math.ceil(math.log2(2 * _ENOUGH / max(r, 1e-3))), _MOST_MEMBERS)


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
