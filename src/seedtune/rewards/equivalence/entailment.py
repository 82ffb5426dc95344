"""Answers that entail one another, by a model of natural language inference (Farquhar et al., Nature 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...errors import ConfigError
from . import pretrained
from .exact import Exact


@dataclass(frozen=True)
class Entailment(Exact):
    """Bidirectional entailment: each answer, read behind the question, entails the other. `model`: of transformers, for
    sequence classification, with a label named entailment. Raises ConfigError for another.
    """

    model: str

    def check(self) -> None:
        _classifier.__wrapped__(self.model)  # the process that scores loads its own

    def same(self, a: str, b: str, question: str) -> bool:
        return self.key(a) == self.key(b) or all(p.likeliest == _ENTAILMENT for p in self._both_ways(a, b, question))

    def squared_distance(self, a: str, b: str, question: str) -> float:
        """p(contradiction) + p(neutral) / 2, the mean of both ways (Qiu and Miikkulainen, arXiv 2405.13845: E|v - w|^2,
        where the same meaning is at distance 0, a neutral one at sqrt(1/2), a contradictory one at 1).
        """
        if self.key(a) == self.key(b):
            return 0.0
        return sum(1 - p.entailment - p.neutral / 2 for p in self._both_ways(a, b, question)) / 2

    def _both_ways(self, a: str, b: str, question: str) -> tuple[Inference, Inference]:
        first, second = (f"{question} {answer}".strip() for answer in (a, b))
        return _infer(self.model, first, second), _infer(self.model, second, first)


_ENTAILMENT, _NEUTRAL = "entailment", "neutral"


@dataclass(frozen=True)
class Inference:
    """Probabilities that the premise entails the hypothesis, and that it neither does nor contradicts it (0 for models
    without that label); and the likeliest label.
    """

    entailment: float
    neutral: float
    likeliest: str


@lru_cache(maxsize=65536)
def _infer(name: str, premise: str, hypothesis: str) -> Inference:
    """One pair at a time: what it gives does not depend on which others are compared."""
    import torch

    model, tokenizer, labels = _classifier(name)
    limit = pretrained.longest(model, tokenizer)
    inputs = tokenizer(premise, hypothesis, truncation=True, max_length=limit, return_tensors="pt")
    with torch.inference_mode():
        probabilities = model(**inputs).logits[0].float().softmax(-1).tolist()
    by_label = dict(zip(labels, probabilities, strict=True))
    return Inference(by_label[_ENTAILMENT], by_label.get(_NEUTRAL, 0.0), max(by_label, key=lambda k: by_label[k]))


@lru_cache(maxsize=2)
def _classifier(name: str) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer and the labels of its outputs, in lower case. Raises ConfigError."""
    model, tokenizer = pretrained.load("entailment", name, "AutoModelForSequenceClassification")
    labels = [str(model.config.id2label[n]).lower() for n in sorted(model.config.id2label)]
    if _ENTAILMENT not in labels:
        raise ConfigError(
            f"equivalence: entailment: the model {name!r} has no label named entailment; its labels are "
            f"{', '.join(labels)}. Give a model of natural language inference (MNLI)."
        )
    return model, tokenizer, labels
