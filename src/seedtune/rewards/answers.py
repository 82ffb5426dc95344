"""The answers of one group, several completions of a member for one prompt, and which of them say the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import ConfigError
from ..tasks.base import text_of
from ..tasks.final_answer import last_marked
from ..utils.messages import content_text
from .equivalence import Choice, Exact, plug_of
from .equivalence.exact import normalize

#: The column of completions/ with each completion's answer, as it is compared.
ANSWER = "answer"


@dataclass(frozen=True)
class AnswerGroup:
    """Answers to one question: the places of its completions in a call, their texts, and the answers in them."""

    places: Sequence[int]
    question: str
    texts: Sequence[str]
    answers: Sequence[str]
    equal: Exact

    @cached_property
    def keys(self) -> list[str]:
        """Normalized answers; empty: a completion has none, which agrees with nothing."""
        return [self.equal.key(answer) if answer.strip() else "" for answer in self.answers]

    @cached_property
    def clusters(self) -> list[int]:
        """The number of each answer's cluster. An answer joins the first cluster whose first answer says the same
        (Farquhar et al., Nature 2024, Methods: bidirectional entailment clustering); where there is none it begins one.
        A completion without an answer is a cluster of its own.
        """
        firsts: list[int] = []
        found = []
        for n, key in enumerate(self.keys):
            known = [m for m in firsts if key and self.keys[m] and self._same(m, n)]
            joined = known[0] if known else n
            firsts += [] if known else [n]
            found.append(firsts.index(joined))
        return found

    def share(self, n: int) -> float:
        """The share of completions that answer what completion n does; 0 where it has no answer."""
        return self.clusters.count(self.clusters[n]) / len(self.clusters) if self.keys[n] else 0.0

    def squared_distance(self, m: int, n: int) -> float:
        """Of answers m and n, from 0 to 1; a completion without an answer is as far from all others as can be."""
        if self.keys[m] and self.keys[n]:
            return self.equal.squared_distance(self.answers[m], self.answers[n], self.question)
        return float(m != n)

    def _same(self, m: int, n: int) -> bool:
        return self.equal.same(self.answers[m], self.answers[n], self.question)


def answer_groups(
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    group: Sequence[int],
    equivalence: Choice = "exact",
    answer: str | None = None,
    log_extra: Callable[[str, list[str]], None] | None = None,
    **_: Any,
) -> Iterator[AnswerGroup]:
    """The groups of a call, in their order. `equivalence`: when two answers say the same. `answer`: a regular
    expression, whose last match in a completion is its answer (or the match's first group, where it has one); default:
    all of the completion. Answers are logged as a column. Raises ConfigError.
    """
    plug, texts = plug_of(equivalence), [text_of(completion) for completion in completions]
    answers = [answer_in(text, answer) for text in texts]
    if log_extra:
        log_extra(ANSWER, [plug.key(found) if found.strip() else "" for found in answers])
    for number in dict.fromkeys(group):
        places = [n for n, other in enumerate(group) if other == number]
        question = question_of(prompts[places[0]])
        yield AnswerGroup(places, question, [texts[n] for n in places], [answers[n] for n in places], plug)


def answer_in(text: str, pattern: str | None) -> str:
    """The last match of the pattern, or its first group; empty where there is none. Without a pattern all of it."""
    if pattern is None:
        return text
    if not (found := [*re.finditer(pattern, text)]):
        return ""
    return (found[-1][1] or "") if found[-1].re.groups else found[-1][0]


def final_answer(text: str) -> str:
    """A completion's answer, normalized: the last that it marks (`last_marked`), else all of it."""
    marked = last_marked(text)
    return normalize(text if marked is None else marked)


def question_of(prompt: Any) -> str:
    """The text of a prompt: of its last message, when conversational."""
    return prompt if isinstance(prompt, str) else content_text(prompt[-1]["content"])


def check_pattern(pattern: Any) -> None:
    """Raise ConfigError for one that is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as e:
        raise ConfigError(
            f"reward_args: answer is a regular expression, whose last match is the answer; got {pattern!r}: {e}."
        ) from e
