"""What an evaluation during training says of the distance travelled: KL, weights, and a text the reward never sees."""

from __future__ import annotations

from collections.abc import Sequence

from ..engines.base import Engine, Prompt, Sampling
from .kl import divergence, sample
from .probe import perplexity

#: Prompts whose responses are sampled, at most.
_PROMPTS = 32


def drift(engine: Engine, prompts: Sequence[Prompt], samples: int, length: int, seed: int) -> dict[str, float]:
    """`kl` from the base in nats a token with `kl_ci95` (responses sampled at temperature 1), the `distance` of the
    weights from the base, and the `perplexity` of the probe.
    """
    asked, responses = sample(engine, prompts[:_PROMPTS], samples, Sampling(length, temperature=1.0), seed)
    kl = divergence(engine, asked, responses)
    measured = {"kl": kl.mean, "kl_ci95": kl.half, "distance": engine.distance(), "perplexity": perplexity(engine)}
    engine.restore()
    return {name: value for name, value in measured.items() if value == value}
