"""Held-out probes: is the model still what it was, where the reward does not look?"""

from __future__ import annotations

import dataclasses
import math
from importlib.resources import files

import numpy as np

from ..engines.base import Completion, TextScorer

#: Tokens of a passage that are read, at most: probes are taken during training, so they must be cheap.
_MOST = 64
#: exp of this is the largest perplexity that is told: beyond it there is no difference, and soon no number.
_LARGEST = 300.0


def passages() -> list[str]:
    """Short texts of many kinds (encyclopaedia, story, letter, code, arithmetic, recipe, French), written for this."""
    text = (files(__package__) / "probe.txt").read_text(encoding="utf-8")
    return [part.strip() for part in text.split("\n----\n")]


def perplexity(engine: TextScorer) -> float:
    """exp of the mean negative log-probability per token over the passages, but for their first tokens: what those
    follow is unknown. At most exp(300). To compare with the same model before, never with a model of another tokenizer.
    """
    texts = engine.encode(passages(), 0, truncate=True)
    firsts = [dataclasses.replace(text, ids=text.ids[:1]) for text in texts]
    rest = [Completion(text.ids[1:_MOST], "", truncated=True) for text in texts]
    chances = np.concatenate(engine.logprobs(firsts, rest, base=False))
    return math.exp(min(-float(chances.mean()), _LARGEST))
