"""How far noise moves members' behavior: KL(member || center) per token, the mean over the center's own greedy
completions, is how differently a member would write them; the mean over ordinary passages, how differently it would
write anything else. The larger of the two counts: a task whose answers are a few tokens that hardly anything changes
would else take noise that breaks the model everywhere else. It grows about like sigma squared. `sigma: auto` is where
it reaches `TARGET`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..engines.base import Completion, Engine, Prompt, Sampling
from ..errors import ConfigError
from ..es.population import CENTER, Population
from ..evaluation.perplexity import passages

log = logging.getLogger(__name__)

#: Nats per token: between the 0.15 (rank 1) and the 0.28 (full rank) at the sigmas that learned best (LOG.md).
TARGET = 0.2
#: Coarse steps, from below; then the interval in which the target lies is narrowed so many times.
SIGMAS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
_NARROWED = 2
_MEMBERS, _PROMPTS, _TOKENS = 4, 4, 32


@dataclass(frozen=True)
class Calibration:
    """KL per token at each measured sigma, in the order of sigma, and the sigma at which it is `target`. `follows`:
    sigma is measured again during the run (runs of 0.1.0 did not).
    """

    sigmas: tuple[float, ...]
    divergences: tuple[float, ...]
    target: float
    sigma: float
    follows: bool = True


#: Prompts, and a text behind each, on which KL is measured.
Probe = tuple[list[Prompt], list[Completion]]


def probes(engine: Engine, prompts: Sequence[Prompt], max_completion_length: int) -> list[Probe]:
    """What KL is measured on: the center's completions of a few prompts, and ordinary passages. Empty where the center
    writes nothing: then there is nothing to train, either.
    """
    written = center_texts(engine, prompts, max_completion_length)
    return [written, _passages(engine)] if any(c.ids for c in written[1]) else []


def center_texts(engine: Engine, prompts: Sequence[Prompt], max_completion_length: int) -> Probe:
    """A few prompts and the beginnings of the center's greedy completions, or of those that are given."""
    first = list(prompts[:_PROMPTS])
    if first[0].given:
        texts = [prompt.given[0] for prompt in first]
        return first, [Completion(text.ids[:_TOKENS], text.text, truncated=True) for text in texts]
    engine.set_members([CENTER] * len(first))
    return first, engine.generate(first, Sampling(min(_TOKENS, max_completion_length)), 0)


def _passages(engine: Engine) -> Probe:
    """The beginnings of passages behind their first tokens."""
    texts = engine.encode(passages()[:_PROMPTS], 0, truncate=True)
    rest = [Completion(text.ids[1 : 1 + _TOKENS], "", truncated=True) for text in texts]
    return [dataclasses.replace(text, ids=text.ids[:1]) for text in texts], rest


def member_kl(engine: Engine, prompts: Sequence[Prompt], max_completion_length: int, sigma: float) -> float:
    """KL per token of members at a sigma from the center: members of iteration 0, which training never uses."""
    return _measure(engine, probes(engine, prompts, max_completion_length))(sigma)


def _measure(engine: Engine, on: Sequence[Probe]) -> Callable[[float], float]:
    members = Population(_MEMBERS, antithetic=True).ask(0)

    def at(sigma: float) -> float:
        engine.set_sigma(sigma)
        divergence = float(np.max([engine.divergence(members, *each) for each in on]))  # NaN if one is
        engine.restore()
        return divergence

    return at if on else lambda _: math.nan


def calibrate(
    engine: Engine, prompts: Sequence[Prompt], max_completion_length: int, on_stage: Callable[[str], None] = log.info
) -> Calibration:
    """Find sigma; `on_stage` hears what goes on. Raises ConfigError when no sigma will do."""
    on_stage("sigma: auto: measuring how far noise moves what the model writes.")
    at = _measure(engine, probes(engine, prompts, max_completion_length))
    found: dict[float, float] = {}

    def measure(sigma: float) -> float:
        divergence = at(sigma)
        on_stage(f"  sigma {sigma:g}: members are {divergence:.3g} nats per token from the center")
        return divergence

    for sigma in SIGMAS:
        found[sigma] = measure(sigma)
        if found[sigma] >= TARGET and len(found) > 1:
            break
    for _ in range(_NARROWED):
        sigma = _where(found, TARGET)
        found[sigma] = measure(sigma)
    sigmas, sigma = tuple(sorted(found)), _where(found, TARGET)
    on_stage(f"  sigma {sigma:g} is where they are {TARGET:g} nats per token from it")
    return Calibration(sigmas, tuple(found[s] for s in sigmas), TARGET, sigma)


def _where(found: dict[float, float], target: float) -> float:
    """The sigma at which the divergence reaches the target, to three digits: on a line in log-log between the points
    around it.
    """
    points = sorted(found.items())
    below = [point for point in points if point[1] < target]
    above = [point for point in points if point[1] >= target and below and point[0] > below[0][0]]
    if not below or not above:
        raise ConfigError(
            f"sigma: auto finds no sigma at which members differ from the center by {target:g} nats per token "
            f"(measured: {', '.join(f'{kl:.3g} at {s:g}' for s, kl in points)}). Set sigma yourself."
        )
    s1, kl1 = above[0]
    s0, kl0 = [point for point in below if point[0] < s1][-1]
    part = math.log(target / max(kl0, 1e-12)) / math.log(kl1 / max(kl0, 1e-12))
    return float(f"{math.exp(math.log(s0) + part * math.log(s1 / s0)):.3g}")
