"""Answers that are the same text, after normalization; and what every kind of equivalence can do."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

#: What stands around an answer and is no part of it. A sign or a point in front of digits is.
_QUOTES = " \"'“”‘’«»*_`"
_ENDS = _QUOTES + ".,;:!?"


def normalize(answer: str) -> str:
    """In Unicode's form NFKC, without case, quotes and emphasis around it, punctuation behind it, and with one space
    between words: `**Paris.**` is `paris`, `-3.5` stays.
    """
    words = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    return words.lstrip(_QUOTES).rstrip(_ENDS)


@dataclass(frozen=True)
class Exact:
    """Two answers are the same when their normalized texts are. Other kinds override its methods."""

    def check(self) -> None:
        """Raise ConfigError when it cannot work here, before a run begins."""

    def key(self, answer: str) -> str:
        """A text that answers have in common when they are plainly the same; empty: it is no answer."""
        return normalize(answer)

    def same(self, a: str, b: str, question: str) -> bool:
        """Whether two answers to the question say the same."""
        return self.key(a) == self.key(b)

    def squared_distance(self, a: str, b: str, question: str) -> float:
        """How far apart the two are in a space of meanings, squared: 0, the same, to 1, contradictory."""
        return float(not self.same(a, b, question))
