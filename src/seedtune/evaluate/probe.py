"""Held-out probes: is the model still what it was, where the reward does not look?"""

from __future__ import annotations

import dataclasses
import math
from importlib.resources import files

import numpy as np

from ..engines.base import Completion, Engine

#: Tokens of a passage that are read, at most: probes are taken during training, so they must be cheap.
_MOST = 64


def passages() -> list[str]:
    """Short texts of many kinds (encyclopaedia, story, letter, code, arithmetic, recipe, French), written for this."""
    text = (files("seedtune.evaluate") / "probe.txt").read_text(encoding="utf-8")
    return [part.strip() for part in text.split("\n----\n")]


def perplexity(engine: Engine) -> float:
    """exp of the mean negative log-probability a token over the passages, but for their first tokens: what those follow
    is unknown. To compare with the same model before, never with a model of another tokenizer.
    """
    texts = engine.encode(passages(), 0, cut=True)
    firsts = [dataclasses.replace(text, ids=text.ids[:1]) for text in texts]
    rest = [Completion(text.ids[1:_MOST], "", truncated=True) for text in texts]
    chances = np.concatenate(engine.logprobs(firsts, rest, base=False))
    return math.exp(-float(chances.mean()))
