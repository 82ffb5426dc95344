"""What an evaluation during training says of the distance travelled: KL, weights, and a text the reward never sees."""

from __future__ import annotations

from collections.abc import Sequence

from ..engines.base import Engine, Prompt
from ..fleet.local import Beside
from .kl import divergence
from .probe import perplexity

#: Prompts whose responses are sampled, at most.
_PROMPTS = 32


def to_draw(prompts: Sequence[Prompt], samples: int) -> Beside:
    """What to draw beside an evaluation, for its KL."""
    return Beside([prompt for prompt in prompts[:_PROMPTS] for _ in range(samples)])


def drift(engine: Engine, drawn: Beside | None) -> dict[str, float]:
    """`kl` from the base in nats a token with `kl_ci95`, from the responses that were drawn; the `distance` of the
    weights from the base; the `perplexity` of the probe. None drawn: before the first update, when nothing has moved.
    """
    measured = {"kl": 0.0, "kl_ci95": 0.0, "distance": 0.0, "perplexity": perplexity(engine)}
    if drawn is not None:  # the base comes last: weights are packed anew for it
        kl = divergence(engine, drawn.prompts, [drawn.completions[n] for n in range(len(drawn.prompts))])
        measured |= {"kl": kl.mean, "kl_ci95": kl.half, "distance": engine.distance()}
    engine.restore()
    return {name: value for name, value in measured.items() if value == value}
