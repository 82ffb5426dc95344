"""Answers that are the same number or expression: `0.5`, `1/2` and `\\boxed{\\frac{1}{2}}`, by math-verify."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks import math_equal
from ...tasks.final_answer import last_boxed
from .exact import Exact


@dataclass(frozen=True)
class Math(Exact):
    """Equal by math-verify. What it cannot read, or what would take long to compute, is no answer."""

    def check(self) -> None:
        math_equal.check_installed("equivalence: math")

    def key(self, answer: str) -> str:
        return math_equal.canonical(_said(answer))

    def same(self, a: str, b: str, question: str) -> bool:
        key = self.key(a)
        return key != "" and (key == self.key(b) or math_equal.equal(_said(a), _said(b)))


def _said(text: str) -> str:
    """What of a text is read: its last box, or, where it has none, so much of its end as an answer may be long."""
    box = last_boxed(text)
    return text[-math_equal.LONGEST :] if box is None else f"\\boxed{{{box}}}"
