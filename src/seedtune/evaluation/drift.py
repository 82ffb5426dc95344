"""How far an evaluation during training finds the model moved: KL, weights, and perplexity of a held-out text."""

from __future__ import annotations

from collections.abc import Sequence

from ..engines.base import Engine, Prompt
from ..rollout.runner import UnscoredSamples
from .kl import divergence
from .perplexity import perplexity

#: Prompts whose responses are sampled, at most.
_PROMPTS = 32


def unscored_samples(prompts: Sequence[Prompt], samples: int) -> UnscoredSamples:
    """What to sample with an evaluation, for its KL."""
    return UnscoredSamples([prompt for prompt in prompts[:_PROMPTS] for _ in range(samples)])


def drift(engine: Engine, samples: UnscoredSamples | None) -> dict[str, float]:
    """`kl` from the base in nats per token with `kl_ci95`, from the completions that were sampled; the `distance` of
    the weights from the base; the `perplexity` of the probe. None: before the first update, when nothing has moved.
    """
    measured = {"kl": 0.0, "kl_ci95": 0.0, "distance": 0.0, "perplexity": perplexity(engine)}
    if samples is not None:  # the base comes last: weights are packed anew for it
        kl = divergence(engine, samples.prompts, [samples.completions[n] for n in range(len(samples.prompts))])
        measured |= {"kl": kl.mean, "kl_ci95": kl.half, "distance": engine.distance()}
    engine.restore()
    return {name: value for name, value in measured.items() if value == value}
