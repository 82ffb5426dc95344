"""How much of what members earn is signal: reliability, from rewards alone.

A unit is an antithetic pair, or a single member. Its effect on a prompt is half the difference of the pair's rewards
(by symmetry zero on average), or a member's reward minus the prompt's mean. A unit's mean effect over its P prompts has
the variance S + V / P: S is what a step can follow, V differs from prompt to prompt. Reliability is S / (S + V / P),
the share of the variance of mean effects that another draw of prompts would show again: one-way analysis of variance
with random effects (Shrout and Fleiss, Psychological Bulletin 86, 1979, ICC(1, k)).
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: What the sums of an iteration are worth when the next is added: reliability changes slowly, and one iteration of 32
#: pairs says little.
DECAY = 0.9
#: What reliability is taken to be before anything is known, and how many iterations that weighs, to the end: a step
#: along noise costs little KL, one that is left out costs all of its completions (benchmarks/step_rules.py).
PRIOR, PRIOR_ITERATIONS = 0.2, 3


def odd_effects(rewards_M_P: Floats) -> Floats:
    """(R+ - R-) / 2 of each pair, [pairs, prompts]; members alternate +, -. NaN where either has no reward."""
    return (rewards_M_P[0::2] - rewards_M_P[1::2]) / 2


def even_effects(rewards_M_P: Floats) -> Floats:
    """(R+ + R-) / 2 of each pair minus its prompt's mean over pairs, [pairs, prompts], scaled so that its variance is
    unbiased. NaN where either has no reward, or where a prompt has one pair only.
    """
    return _deviations((rewards_M_P[0::2] + rewards_M_P[1::2]) / 2)


def effects(rewards_M_P: Floats, antithetic: bool) -> Floats:
    """What each unit does on each prompt, [units, prompts]; NaN where it is not known."""
    return odd_effects(rewards_M_P) if antithetic else _deviations(rewards_M_P)


def _deviations(values: Floats) -> Floats:
    """From the mean of a column, times sqrt(n / (n - 1)); NaN in columns with one value."""
    counts = np.sum(~np.isnan(values), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.nansum(values, axis=0) / counts
        scale = np.where(counts > 1, np.sqrt(counts / np.maximum(counts - 1, 1)), np.nan)
        deviations: Floats = (values - means) * scale
    return deviations


def mirrored_correlation(rewards_M_P: Floats) -> float:
    """The correlation of R+ and R- over pairs, prompt means removed: positive where most of a member's reward is even
    in its noise, which a pair's difference cancels. NaN where it is not known.
    """
    odd, even = odd_effects(rewards_M_P), even_effects(rewards_M_P)
    known = ~np.isnan(even) & ~np.isnan(odd)
    if not known.any():
        return math.nan
    a, b = float(np.mean(even[known] ** 2)), float(np.mean(odd[known] ** 2))
    return (a - b) / (a + b) if a + b > 0 else math.nan


def error_of_mean(rewards_M_P: Floats, *, prompts_vary: bool) -> float:
    """The standard error of the mean reward: over members, and over prompts where other iterations have others."""
    per_member, per_prompt = (values[~np.isnan(values)] for values in (_means(rewards_M_P), _means(rewards_M_P.T)))
    parts = [per_member, per_prompt] if prompts_vary else [per_member]
    if any(len(part) < 2 for part in parts):
        return math.nan
    return math.sqrt(sum(float(part.var(ddof=1)) / len(part) for part in parts))


def rms(effects_K_P: Floats) -> float:
    """Root mean square of units' mean effects; 0 where nothing is known."""
    means = _means(effects_K_P)
    known = means[~np.isnan(means)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else 0.0


def _means(values: Floats) -> Floats:
    """Of each row, over what is known; NaN where nothing is."""
    counts = np.sum(~np.isnan(values), axis=1)
    with np.errstate(invalid="ignore"):
        means: Floats = np.nansum(values, axis=1) / np.where(counts > 0, counts, np.nan)
    return means


@dataclass(frozen=True)
class Variances:
    """Of one table of effects: `signal` S, `prompt` V, with `prompts` P per unit and `units` of them."""

    signal: float
    prompt: float
    prompts: float
    units: int

    def reliability(self, prompts: float | None = None) -> float:
        """S / (S + V / P), at another number of prompts by Spearman and Brown's formula; NaN where nothing varies."""
        total = self.signal + self.prompt / (prompts or self.prompts)
        return self.signal / total if total > 0 else math.nan


def variances(effects_K_P: Floats) -> Variances:
    """Method of moments: the products of a unit's effects on two different prompts average S, their squares S + V."""
    terms = _terms(effects_K_P)
    if terms is None:
        return Variances(math.nan, math.nan, math.nan, 0)
    between, total, counts = terms
    signal, mean_square = float(between.mean()), float(total.mean())
    prompts = float(counts.mean())
    return Variances(signal, (mean_square - signal) * prompts, prompts, len(counts))


def _terms(effects_K_P: Floats) -> tuple[Floats, Floats, Floats] | None:
    """Of each unit with two prompts or more: its unbiased S, its squared mean effect, and how many prompts it has."""
    counts = np.sum(~np.isnan(effects_K_P), axis=1).astype(np.float64)
    some = effects_K_P[counts > 1]
    counts = counts[counts > 1]
    if not len(counts):
        return None
    means = np.nansum(some, axis=1) / counts
    within = np.nansum((some - means[:, None]) ** 2, axis=1) / (counts - 1)
    return means**2 - within / counts, means**2, counts


@dataclass(frozen=True)
class Pooled:
    """Reliability pooled over iterations, recent ones counting most. Each iteration is scaled to unit mean square, so
    that rewards that grow or shrink weigh the same. The fields are sums over units of a, b, a^2, ab and b^2, with a the
    unit's S and b its squared mean effect; squares carry the square of the weight.
    """

    a: float = 0.0
    b: float = 0.0
    aa: float = 0.0
    ab: float = 0.0
    bb: float = 0.0

    def add(self, effects_K_P: Floats) -> Pooled:
        """With an iteration more; one in which nothing differed says nothing."""
        terms = _terms(effects_K_P)
        if terms is None or not terms[1].any():
            return self
        scale = float(terms[1].mean())
        a, b = terms[0] / scale, terms[1] / scale
        new = (a.sum(), b.sum(), (a * a).sum(), (a * b).sum(), (b * b).sum())
        decays = (DECAY, DECAY, DECAY**2, DECAY**2, DECAY**2)
        return Pooled(*(d * old + float(x) for d, old, x in zip(decays, astuple(self), new, strict=True)))

    @property
    def value(self) -> float:
        """The pooled reliability of a unit's mean effect; NaN when nothing is known yet. Noise can bring it below 0."""
        return self.a / self.b if self.b > 0 else math.nan

    @property
    def error(self) -> float:
        """Its standard error, of a ratio of sums over independent units (Cochran, Sampling Techniques, eq. 6.13)."""
        if not self.b > 0:
            return math.nan
        r = self.value
        return math.sqrt(max(self.aa - 2 * r * self.ab + r * r * self.bb, 0.0)) / self.b

    def with_prior(self, units: int) -> float:
        """Reliability to act on: what was measured in iterations of `units` units, and the prior."""
        weight = PRIOR_ITERATIONS * units
        return (self.a + weight * PRIOR) / (self.b + weight)


def interval(
    effects_K_P: Floats, prompts: float | None = None, level: float = 0.9, draws: int = 2000
) -> tuple[float, float]:
    """A bootstrap interval of the reliability, drawing units anew (rewards of 0 and 1 are far from normal). Prompts are
    not: one that is drawn twice agrees with itself, which is what reliability measures. The same table gives the same
    interval. Its upper end is never below what the table shows with signs drawn anew, as noise alone would: an estimate
    that came out below 0 does not show that there is no signal.
    """
    random = np.random.Generator(np.random.Philox(key=1))
    units = len(effects_K_P)
    tables = (effects_K_P[random.integers(units, size=units)] for _ in range(draws))
    found = [variances(table).reliability(prompts) for table in tables]
    if np.isnan(found).all():
        return 0.0, 1.0
    signs = (random.choice([-1.0, 1.0], size=effects_K_P.shape) for _ in range(draws))
    noise = [variances(effects_K_P * sign).reliability(prompts) for sign in signs]
    low, high = (1 - level) / 2, (1 + level) / 2
    most = max(np.nanquantile(found, high), np.nanquantile(noise, high))
    return float(np.clip(np.nanquantile(found, low), 0, 1)), float(np.clip(most, 0, 1))
