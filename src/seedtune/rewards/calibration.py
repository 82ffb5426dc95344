"""Rewards for knowing what one knows: a confidence against whether the answer is right, by Brier's score.

The reward is w y - (q - y)^2, where q is the confidence, from 0 to 1, and y is 1 for a right answer, else 0. The square
alone (Brier, 1950) is best for whoever is surely wrong; with w = 1, the default, it is R_RLCR of Damani et al. (arXiv
2507.16806): answering right and saying how sure one is both pay. All take `correctness` (w), `correct`, `equivalence`
and `answer` (see `_rewards`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ..tasks.base import text_of
from .answers import answer_groups, answer_in
from .confidence import Rewards, log_likelihood
from .equivalence import Choice, plug_of

#: Columns of completions/: the confidence (None: none was stated), and 1 where the answer is right.
CONFIDENCE, CORRECT = "calibration/confidence", "calibration/correct"

#: `Confidence: 80%`, `confidence is 0.8`, `Confidence: 8/10`: a number, and what says its scale.
_BETWEEN = r"[\s:=*~_(]{0,20}"  # bounded, as a model may write spaces for ever
_STATED = re.compile(
    rf"\bconfidence\b{_BETWEEN}(?:(?:level|is|of)\b{_BETWEEN}){{0,3}}(\d{{1,40}}(?:\.\d{{1,40}})?)\s{{0,20}}"
    r"(%|percent\b|/\s{0,20}100?\b)?",
    re.I,
)


def calibration(*, completions: Sequence[Any], **call: Any) -> Rewards:
    """w y - (q - y)^2 of the confidence q that a completion states, such as `Confidence: 80%`; the last one counts. Who
    states none has the score of one who is sure and wrong. Damani et al. (arXiv 2507.16806), their formula of R_RLCR.
    """
    confidences = [stated_confidence(text_of(completion)) for completion in completions]
    return _rewards(confidences, completions=completions, **call)


def majority_calibration(*, completions: Sequence[Any], group: Sequence[int], **call: Any) -> Rewards:
    """w y - (q - y)^2 (see `calibration`) of the confidence that lies in how many completions of a group give the same
    answer: q is their share, P(C_i) of discrete semantic entropy (Farquhar et al., doi 10.1038/s41586-024-07421-0,
    Methods). A group of one is left out.
    """
    call |= {"completions": completions, "group": group}
    confidences, alone = [0.0] * len(completions), set[int]()
    for g in answer_groups(**call):
        alone |= {*g.places} if len(g.places) == 1 else set()
        for n, place in enumerate(g.places):
            confidences[place] = g.share(n)
    return [None if n in alone else reward for n, reward in enumerate(_rewards(confidences, **call))]


def likelihood_calibration(*, completion_logprobs: Sequence[Sequence[float]], **call: Any) -> Rewards:
    """w y - (q - y)^2 (see `calibration`) of the confidence that lies in a completion's likelihood: q is the geometric
    mean of its tokens' probabilities, exp of the log-probability with "length normalization" (Farquhar et al., doi
    10.1038/s41586-024-07421-0, Methods).
    """
    return _rewards([math.exp(log_likelihood(logprobs)) for logprobs in completion_logprobs], **call)


def stated_confidence(text: str) -> float | None:
    """From 0 to 1, the last that the text states; None: it states none, or more than all. A number without a scale is a
    share where it is at most 1, else per cent.
    """
    if not (stated := [*_STATED.finditer(text)]):
        return None
    number, scale = float(stated[-1][1]), "".join((stated[-1][2] or "").lower().split())
    whole = {"%": 100, "percent": 100, "/100": 100, "/10": 10, "": 1 if number <= 1 else 100}[scale]
    return number / whole if number <= whole else None


def before_confidence(text: str) -> str:
    """What the text says before it states its confidence for the last time; all of it where it states none."""
    stated = [*_STATED.finditer(text)]
    return text[: stated[-1].start()].rstrip(" \n(,;-*") if stated else text


def judge_of(correct: Callable[..., Any] | str) -> Callable[..., Any]:
    """The reward function that says what is right, itself or by name. Raises RewardError."""
    from .lookup import resolve  # it looks up what stands here, too

    return resolve(correct) if isinstance(correct, str) else correct


def _rewards(
    confidences: Sequence[float | None],
    *,
    completions: Sequence[Any],
    solution: Sequence[Any] | None = None,
    correct: Callable[..., Any] | str | None = None,
    correctness: float = 1.0,
    equivalence: Choice = "exact",
    answer: str | None = None,
    log_extra: Callable[..., None] | None = None,
    **columns: Any,
) -> Rewards:
    """Right is an answer that says the same as the column `solution`, by `equivalence`; or, where `correct` is given,
    the name of a reward function, a completion for which that returns 1 or more. `answer` as for `answer_groups`;
    without it the answer is what stands before the confidence.
    """
    if correct is not None:
        columns |= {"completions": completions, "log_extra": log_extra}
        columns |= {} if solution is None else {"solution": solution}
        right = [float(value is not None and value >= 1) for value in judge_of(correct)(**columns)]
    else:
        plug, texts = plug_of(equivalence), [text_of(completion) for completion in completions]
        given = [answer_in(text, answer) if answer else before_confidence(text) for text in texts]
        pairs = zip(given, map(str, solution or []), strict=True)
        right = [float(bool(plug.key(ours)) and plug.same(ours, theirs, "")) for ours, theirs in pairs]
    if log_extra:
        log_extra(CONFIDENCE, list(confidences))
        log_extra(CORRECT, right)
    return [correctness * y - (1.0 if q is None else (q - y) ** 2) for q, y in zip(confidences, right, strict=True)]
