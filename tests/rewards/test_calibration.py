"""Rewards for knowing what one knows: confidences that are stated or implied, against what is right."""

from __future__ import annotations

import math
import random

import pytest

from seedtune.rewards.calibration import (
    before_confidence,
    calibration,
    likelihood_calibration,
    majority_calibration,
    stated_confidence,
)


def right(completions, **_):
    return [1.0 if "4" in c else None for c in completions]


def call(function, *texts, **more):
    more = {"solution": ["4"] * len(texts), "prompts": ["2 + 2?"] * len(texts), **more}
    return function(completions=list(texts), completion_ids=[[1]] * len(texts), **more)


@pytest.mark.parametrize(
    ("text", "confidence", "answer"),
    [
        ("4. Confidence: 80%", 0.8, "4."),
        ("4\n**Confidence:** 80 percent", 0.8, "4"),
        ("4 (confidence 0.25)", 0.25, "4"),
        ("Confidence: 10%. No: 4, confidence is 90%", 0.9, "Confidence: 10%. No: 4"),
        ("4; Confidence level: 7/10", 0.7, "4"),
        ("Confidence = 85 / 100", 0.85, ""),
        ("Confidence: 95", 0.95, ""),
        ("Confidence: 1", 1.0, ""),
        ("Confidence: 0", 0.0, ""),
        ("Confidence: 1%", 0.01, ""),
        ("4. Confidence: 150%", None, "4."),
        ("4. Confidence: high", None, "4. Confidence: high"),
        ("I have 5 in confidence", None, "I have 5 in confidence"),
        ("", None, ""),
    ],
)
def test_stated_confidences(text, confidence, answer):
    assert stated_confidence(text) == (None if confidence is None else pytest.approx(confidence))
    assert before_confidence(text) == answer


def test_the_reward_by_hand():
    """y - (q - y)^2: 1 - 0.2^2; 0 - 0.9^2; 0 - 0.1^2; nothing stated: 1 - 1 and 0 - 1."""
    texts = ["4. Confidence: 80%", "5. Confidence: 90%", "5. Confidence: 10%", "4", "5"]
    assert call(calibration, *texts) == pytest.approx([0.96, -0.81, -0.01, 0.0, -1.0])
    assert call(calibration, *texts, correctness=0) == pytest.approx([-0.04, -0.81, -0.01, -1.0, -1.0])


def test_the_best_confidence_is_the_chance_to_be_right():
    """Properness: where three of four answers are right, no confidence earns more than 75 %."""

    def mean(confidence):
        found = call(calibration, *[f"{x} Confidence: {confidence}%" for x in (4, 4, 4, 5)])
        return sum(found) / 4

    assert max(range(0, 101, 5), key=mean) == 75


def test_being_surely_wrong_pays_only_where_the_score_stands_alone():
    wrong, unsure = "5. Confidence: 0%", "4. Confidence: 60%"
    first, second = call(calibration, wrong, unsure, correctness=0)
    assert first > second
    first, second = call(calibration, wrong, unsure)
    assert first < second


def test_what_is_right_may_be_said_by_another_function():
    texts = ["it is 4. Confidence: 100%", "5. Confidence: 100%"]
    assert call(calibration, *texts, correct=right, solution=None) == [1.0, -1.0]
    assert call(calibration, *texts, correct="correct") == [1.0, -1.0], "a built-in: the solution as a whole word"
    assert call(calibration, *texts) == [-1.0, -1.0], "by themselves, texts are compared whole"
    assert call(calibration, *texts, answer=r"\d+(?=\. )") == [1.0, -1.0]


def test_confidence_in_agreement_and_in_likelihood():
    """Three of four say 4: q = 3/4, y = 1; the fourth has q = 1/4, y = 0."""
    found = call(majority_calibration, "4", "4.", "5", "4", group=[0] * 4)
    assert found == pytest.approx([1 - 1 / 16] * 2 + [-1 / 16] + [1 - 1 / 16])
    assert call(majority_calibration, "4", "4", group=[0, 1]) == [None, None]
    assert call(majority_calibration, "", "", group=[0, 0]) == [0, 0], "no answer, no confidence"
    logprobs = [[math.log(0.5), math.log(0.125)], [math.log(0.25)]]
    found = call(likelihood_calibration, "4", "5", completion_logprobs=logprobs)
    assert found == pytest.approx([1 - 0.75**2, -(0.25**2)])


def test_they_agree_with_slow_references():
    """w y - (q - y)^2, with q as stated, as the share of the group, and as the n-th root of a product."""
    rng = random.Random(4)
    for w in (0, 1, 0.5):
        group = [rng.randrange(3) for _ in range(12)]
        answers, stated = [rng.choice("456") for _ in group], [rng.randrange(101) for _ in group]
        p = [[rng.uniform(0.1, 1) for _ in range(rng.randint(1, 4))] for _ in group]
        how = {"group": group, "correctness": w, "completion_logprobs": [[math.log(x) for x in row] for row in p]}
        both = call(calibration, *[f"{a}. Confidence: {q}%" for a, q in zip(answers, stated, strict=True)], **how)
        shares, likelihoods = (call(f, *answers, **how) for f in (majority_calibration, likelihood_calibration))
        for n, answer in enumerate(answers):
            same = [m for m in range(12) if group[m] == group[n]]
            share = sum(answers[m] == answer for m in same) / len(same)
            for found, q in (
                (both, stated[n] / 100),
                (likelihoods, math.prod(p[n]) ** (1 / len(p[n]))),
                (shares, share),
            ):
                if found is shares and len(same) == 1:
                    assert found[n] is None
                else:
                    y = 1 if answer == "4" else 0
                    assert found[n] == pytest.approx(w * y - (q - y) ** 2)


def test_what_is_known_is_logged():
    logged = {}
    call(calibration, "4. Confidence: 80%", "5", log_extra=logged.__setitem__)
    assert logged == {"calibration/confidence": [0.8, None], "calibration/correct": [1.0, 0.0]}
