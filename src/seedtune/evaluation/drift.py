"""How far an evaluation during training finds the model moved: KL, weights, and perplexity of a held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from ..engines.base import Engine, Prompt, Sampling
from ..es.population import CENTER
from ..rollout.runner import UnscoredSamples
from .kl import divergence
from .perplexity import perplexity
from .statistics import Estimate, per_token

#: Prompts whose responses are sampled, at most.
_PROMPTS = 32
#: Log-probabilities of whole distributions that are kept for given texts, at most.
_MAX_LOGITS = 2**26


def unscored_samples(prompts: Sequence[Prompt], samples: int) -> UnscoredSamples:
    """What to sample with an evaluation, for its KL."""
    return UnscoredSamples([prompt for prompt in prompts[:_PROMPTS] for _ in range(samples)])


def drift(engine: Engine, samples: UnscoredSamples | None, read: Sequence[Prompt] = ()) -> dict[str, float]:
    """`kl` from the base in nats per token with `kl_ci95`, from the completions that were sampled, or at the tokens of
    the given ones that are `read`; the `distance` of the weights from the base; the `perplexity` of the probe. Neither:
    before the first update, when nothing has moved.
    """
    measured = {"kl": 0.0, "kl_ci95": 0.0, "distance": 0.0, "perplexity": perplexity(engine)}
    if samples is not None or read:  # the base comes last: weights are packed anew for it
        kl = _from_samples(engine, samples) if samples is not None else _from_texts(engine, read)
        measured |= {"kl": kl.mean, "kl_ci95": kl.half, "distance": engine.distance()}
    engine.restore()
    return {name: value for name, value in measured.items() if value == value}


def _from_samples(engine: Engine, samples: UnscoredSamples) -> Estimate:
    return divergence(engine, samples.prompts, [samples.completions[n] for n in range(len(samples.prompts))])


def _from_texts(engine: Engine, prompts: Sequence[Prompt]) -> Estimate:
    """Of as many of the first texts as fit into memory, one at least; where the engine has no whole distributions, from
    one sample of the center for each prompt, no longer than the texts.
    """
    if not engine.has_distributions:
        asked = [replace(prompt, given=()) for prompt in prompts[:_PROMPTS]]
        longest = max(len(prompt.given[0].ids) for prompt in prompts[:_PROMPTS])
        room = (engine.texts.context or math.inf) - max(len(prompt.ids) for prompt in asked)
        engine.set_members([CENTER] * len(asked))
        return divergence(engine, asked, engine.generate(asked, Sampling(int(min(longest, room)), temperature=1.0), 0))
    tokens = list(accumulate(len(prompt.given[0].ids) for prompt in prompts[:_PROMPTS]))
    count = sum(total * engine.texts.num_embeddings <= _MAX_LOGITS for total in tokens)
    return per_token(engine.divergence_from_base(prompts[: max(count, 1)]))
