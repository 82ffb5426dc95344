"""How far the behavior moved: KL(fine-tuned || base), per token, on the fine-tuned model's own completions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Completion, Prompt, TextScorer
from .statistics import Estimate, per_token

Floats = NDArray[np.float64]


def k3(own: Floats, base: Floats) -> Floats:
    """Schulman's estimator r - log r - 1 with r = p_base / p_own, from log-probabilities; in nats, never negative, and
    exactly 0 where both are equal. ("Approximating KL divergence", 2020; the paper's choice.) No r beyond exp(300).
    """
    log_r = np.minimum(base - own, 300.0)
    return np.expm1(log_r) - log_r


def divergence(
    engine: TextScorer,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    temperature: float = 1.0,
    base: TextScorer | None = None,
) -> Estimate:
    """KL per token from what was sampled at `temperature` with nothing cut off (no top_p, no top_k: with them the
    samples are not the model's own, and the estimate is biased). Both models are read at that temperature. `base` is an
    engine whose center is the base model; default: what the engine's own center began as. Of an engine from itself it
    is 0, and nothing is read.
    """
    if base is engine:
        return per_token([np.zeros(len(completion.chosen)) for completion in completions])
    own = engine.logprobs(prompts, completions, temperature, base=False)
    other = (base or engine).logprobs(prompts, completions, temperature, base=base is None)
    return per_token([k3(a, b) for a, b in zip(own, other, strict=True)])
