"""Answers whose embeddings point the same way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...errors import ConfigError
from . import pretrained
from .exact import Exact


@dataclass(frozen=True)
class Embeddings(Exact):
    """The cosine of two answers' embeddings is at least `threshold`. `model`: of transformers; an embedding is the mean
    of its last hidden states over the answer's tokens. Which threshold is right depends on the model. Raises
    ConfigError for a model that cannot be loaded.
    """

    model: str
    threshold: float = 0.9

    def check(self) -> None:
        known = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        if not known or not -1 <= self.threshold <= 1:
            raise ConfigError(f"equivalence: embeddings: threshold is a cosine, from -1 to 1; got {self.threshold!r}.")
        _encoder.__wrapped__(self.model)  # the process that scores loads its own

    def same(self, a: str, b: str, question: str) -> bool:
        return self.key(a) == self.key(b) or self._cosine(a, b) >= self.threshold

    def squared_distance(self, a: str, b: str, question: str) -> float:
        """(1 - cosine) / 2: of vectors of length 1/2, so that orthogonal ones (neutral) are at sqrt(1/2), as in Qiu and
        Miikkulainen (arXiv 2405.13845).
        """
        return max(1 - self._cosine(a, b), 0.0) / 2

    def _cosine(self, a: str, b: str) -> float:
        return sum(x * y for x, y in zip(_embed(self.model, a), _embed(self.model, b), strict=True))


@lru_cache(maxsize=16384)
def _embed(name: str, text: str) -> tuple[float, ...]:
    """Of length 1. One text at a time: its embedding does not depend on which others are compared."""
    import torch

    model, tokenizer = _encoder(name)
    limit = pretrained.longest(model, tokenizer)
    inputs = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
    with torch.inference_mode():
        mean = model(**inputs).last_hidden_state[0].double().mean(0)
    return tuple((mean / mean.norm().clamp_min(1e-12)).tolist())


@lru_cache(maxsize=2)
def _encoder(name: str) -> tuple[Any, Any]:
    """Raises ConfigError."""
    return pretrained.load("embeddings", name, "AutoModel")
