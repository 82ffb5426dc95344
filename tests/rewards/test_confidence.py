"""Confidence rewards against what their definitions say, computed slowly and by hand."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from fractions import Fraction
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch

from seedtune.engines.hf.sampler import kl_from_uniform
from seedtune.errors import ConfigError
from seedtune.rewards.answers import answer_in
from seedtune.rewards.builtin import CALIBRATION, CONFIDENCE, LIKELIHOOD, check_arguments
from seedtune.rewards.confidence import (
    discrete_semantic_entropy,
    majority,
    self_certainty,
    semantic_density,
    semantic_entropy,
)


def call(function, *texts, group=None, logprobs=None, **more):
    """As a trainer calls it; texts are completions of one group, unless `group` says."""
    group = group or [5] * len(texts)
    asked = {"group": group, "completion_logprobs": logprobs or [[-1.0]] * len(texts)}
    prompts = [f"question {g}" for g in group]
    return function(prompts=prompts, completions=list(texts), completion_ids=[[1]] * len(texts), **asked, **more)


def logs(*probabilities):
    """Each a completion of one token."""
    return [[math.log(p)] for p in probabilities]


# --- semantic entropy -------------------------------------------------------------------------------------------------


def test_semantic_entropy_by_hand():
    """Likelihoods 0.4, 0.2, 0.1, 0.1 add up to 0.8; Paris has 0.6 of it, that is 3/4, Rome 1/8, Lyon 1/8."""
    found = call(semantic_entropy, "Paris", " paris. ", "Rome", "Lyon", logprobs=logs(0.4, 0.2, 0.1, 0.1))
    entropy = -(3 / 4 * math.log(3 / 4) + 2 * (1 / 8) * math.log(1 / 8))
    assert found == pytest.approx([-entropy] * 4, abs=1e-12)
    assert entropy == pytest.approx(0.735622, abs=1e-6)


def test_discrete_semantic_entropy_by_hand():
    assert call(discrete_semantic_entropy, "a", "A", "b", "a") == pytest.approx([-0.5623351] * 4, abs=1e-7)
    assert call(discrete_semantic_entropy, "a", "b", "c", "d") == pytest.approx([-math.log(4)] * 4)
    assert call(discrete_semantic_entropy, "a", "a", "a") == [0, 0, 0]


def slow_entropy(texts, weights):
    """In the words of the paper: add up what belongs to a meaning, divide by all, sum p log p."""
    meanings = {text.strip().lower() for text in texts}
    total = sum(weights)
    shares = [sum(w for t, w in zip(texts, weights, strict=True) if t.strip().lower() == m) / total for m in meanings]
    return -sum(p * math.log(p) for p in shares)


def test_entropies_agree_with_a_slow_reference_whatever_is_in_a_call():
    rng = random.Random(3)
    for _ in range(50):
        group = [rng.choice([11, 4, 7]) for _ in range(12)]
        texts = [rng.choice(["yes", "Yes", " no", "maybe"]) for _ in group]
        logprobs = [[rng.uniform(-3, 0) for _ in range(rng.randint(1, 5))] for _ in group]
        for per_token, likelihood in ((True, lambda ls: math.exp(sum(ls) / len(ls))), (False, math.prod)):
            found = call(semantic_entropy, *texts, group=group, logprobs=logprobs, per_token=per_token)
            for g in set(group):
                rows = [n for n, other in enumerate(group) if other == g]
                values = [math.exp(sum(logprobs[n])) if not per_token else likelihood(logprobs[n]) for n in rows]
                expected = -slow_entropy([texts[n] for n in rows], values) if len(rows) > 1 else None
                assert [found[n] for n in rows] == (pytest.approx([expected] * len(rows)) if len(rows) > 1 else [None])
        discrete = call(discrete_semantic_entropy, *texts, group=group)
        rows = [n for n, other in enumerate(group) if other == group[0]]
        if len(rows) > 1:
            assert discrete[0] == pytest.approx(-slow_entropy([texts[n] for n in rows], [1.0] * len(rows)))


def test_likelihoods_may_underflow():
    """exp(-2000) is 0 in float64; the shares are 2/3 and 1/3 nevertheless."""
    logprobs = [[-2000.0], [-2000.0], [-2000.0]]
    expected = 2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)
    assert call(semantic_entropy, "a", "a", "b", logprobs=logprobs) == pytest.approx([expected] * 3)
    assert call(semantic_density, "a", "A", "b", logprobs=logprobs) == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    never = [[-math.inf], [-math.inf], [-math.inf]]
    assert call(semantic_entropy, "a", "a", "b", logprobs=never) == pytest.approx([expected] * 3)


def test_a_likelihood_per_token_does_not_depend_on_length():
    short, long = [math.log(0.5)], [math.log(0.5)] * 40
    assert call(semantic_entropy, "a", "b", logprobs=[short, long]) == pytest.approx([-math.log(2)] * 2)
    product = call(semantic_entropy, "a", "b", logprobs=[short, long], per_token=False)
    assert product[0] == pytest.approx(0, abs=1e-9)


# --- what all that compare have in common -----------------------------------------------------------------------------

COMPARING = [semantic_entropy, discrete_semantic_entropy, semantic_density, majority]


@pytest.mark.parametrize("function", COMPARING)
def test_a_group_of_one_says_nothing(function):
    found = call(function, "a", "b", "b", group=[1, 2, 2])
    assert found[0] is None
    assert None not in found[1:]


@pytest.mark.parametrize("function", COMPARING)
def test_who_says_nothing_is_not_certain(function):
    """Empty completions would be the easiest way to agree."""
    assert sum(call(function, "", "", " ", "...")) < sum(call(function, "a", "b", "a", "a"))
    assert call(majority, "", "", "a") == [0, 0, 1]
    assert call(majority, "", "", "") == [0, 0, 0]
    assert call(discrete_semantic_entropy, "", "", "", "") == pytest.approx([-math.log(4)] * 4)


def test_a_pattern_finds_the_answer_and_what_lacks_it_agrees_with_nothing():
    texts = ["I add. Answer: 5", "Answer: 4, no, answer: 5.", "five"]
    assert call(majority, *texts, answer=r"(?i)answer: (\d+)") == [1, 1, 0]
    assert call(majority, *texts, answer=r"\d+") == [1, 1, 0]
    assert [answer_in("a 1 b 2", p) for p in (None, r"\d", r"(\d) b", r"(x)?\d", "z")] == ["a 1 b 2", "2", "1", "", ""]
    with pytest.raises(ConfigError, match="regular expression"):
        check_arguments(partial(majority, answer="(a"), [])


def test_answers_are_logged_as_they_are_compared():
    logged = {}
    call(majority, "**Paris.**", "", log_extra=logged.__setitem__)
    assert logged == {"answer": ["paris", ""]}


def test_conversations_are_read_as_texts():
    chat = [[{"role": "assistant", "content": text}] for text in ("5", "5.", "6")]
    prompts = [[{"role": "user", "content": "2 + 3?"}]] * 3
    assert majority(prompts=prompts, completions=chat, group=[0, 0, 0]) == [1, 1, 0]


# --- the others -------------------------------------------------------------------------------------------------------


def test_semantic_density_by_hand():
    """Different texts Paris 0.4, paris 0.2, Rome 0.2; the second Paris adds nothing. Paris and paris are at distance 0,
    Rome at 1: densities 0.6 / 0.8 and 0.2 / 0.8.
    """
    found = call(semantic_density, "Paris", "Paris", "paris", "Rome", logprobs=logs(0.4, 0.4, 0.2, 0.2))
    assert found == pytest.approx([0.75, 0.75, 0.75, 0.25])


def test_semantic_density_weighs_by_distance(monkeypatch):
    """Squared distances 0.5 between a and b, 0.25 between a and c, 2 (farther than the kernel reaches) between b, c."""
    from seedtune.rewards.equivalence import Exact

    far = {frozenset("ab"): 0.5, frozenset("ac"): 0.25, frozenset("bc"): 2.0}
    monkeypatch.setattr(Exact, "squared_distance", lambda self, a, b, q: 0.0 if a == b else far[frozenset((a, b))])
    p = {"a": 0.5, "b": 0.3, "c": 0.1}
    found = call(semantic_density, "a", "b", "c", logprobs=logs(*p.values()))
    assert found == pytest.approx(
        [(0.5 + 0.5 * 0.3 + 0.75 * 0.1) / 0.9, (0.5 * 0.5 + 0.3) / 0.9, (0.75 * 0.5 + 0.1) / 0.9]
    )


def test_semantic_density_agrees_with_a_slow_reference(monkeypatch):
    """sum_i w_i K(y, y_i) / sum_i w_i over different texts, with distances of any kind."""
    from seedtune.rewards.equivalence import Exact

    rng = random.Random(5)
    between = {frozenset(pair): rng.uniform(0, 1.5) for pair in combinations("abcd", 2)}
    distance = lambda a, b: 0.0 if a == b else between[frozenset((a, b))]  # noqa: E731
    monkeypatch.setattr(Exact, "squared_distance", lambda self, a, b, q: distance(a, b))
    for _ in range(30):
        texts = [rng.choice("abcd") for _ in range(6)]
        of_text = {text: [rng.uniform(-3, 0) for _ in range(rng.randint(1, 5))] for text in "abcd"}
        found = call(semantic_density, *texts, logprobs=[of_text[text] for text in texts])
        for text, density in zip(texts, found, strict=True):
            total, near = 0.0, 0.0
            for other in set(texts):
                likelihood = math.prod(math.exp(x) for x in of_text[other]) ** (1 / len(of_text[other]))
                kernel = 1 - distance(text, other) if distance(text, other) <= 1 else 0.0
                total, near = total + likelihood, near + likelihood * kernel
            assert density == pytest.approx(near / total)


def test_self_certainty_agrees_with_a_slow_reference():
    """-1 / (n V) sum_i sum_j log(V p(j)), from the distributions of a completion's tokens."""
    rng = np.random.default_rng(2)
    for tokens, size in ((1, 3), (4, 7), (9, 2)):
        p = rng.dirichlet(np.ones(size), tokens)
        slow = 0.0
        for i in range(tokens):
            for j in range(size):
                slow -= math.log(size * p[i, j]) / (tokens * size)
        kl = kl_from_uniform(torch.from_numpy(p).log()).tolist()
        assert self_certainty(completion_kl_uniform=[kl]) == [pytest.approx(slow)]


def test_self_certainty_is_the_mean_kl_from_uniform():
    """A vocabulary of two, p = (3/4, 1/4): KL(U || p) = 1/2 log(2/3) + 1/2 log 2 = log(2 / sqrt 3)."""
    p = [0.75, 0.25]
    kl = -sum(math.log(2 * x) for x in p) / 2
    assert kl == pytest.approx(math.log(2 / math.sqrt(3)))
    assert self_certainty(completion_kl_uniform=[[kl, 0.0], [kl], []]) == [
        pytest.approx(kl / 2),
        pytest.approx(kl),
        None,
    ]


def test_majority_is_the_label():
    assert call(majority, "5", "6", "5.", "7") == [1, 0, 1, 0]
    assert call(majority, "6", "5", "5", "6") == [1, 0, 0, 1], "the one that came first, of two as frequent"
    assert call(majority, "1", "2", "1", "2", group=[0, 1, 0, 1]) == [1, 1, 1, 1]


def test_majority_agrees_with_counting():
    rng = random.Random(0)
    for _ in range(100):
        texts = [rng.choice("abc") for _ in range(rng.randint(2, 8))]
        label = Counter(texts).most_common(1)[0][0]
        assert call(majority, *texts) == [float(t == label) for t in texts]
        share = Fraction(texts.count(label), len(texts))
        assert sum(call(majority, *texts)) / len(texts) == float(share)


@pytest.mark.parametrize("function", [*CONFIDENCE, *CALIBRATION, *LIKELIHOOD])
def test_each_says_where_it_is_from(function):
    assert re.search(r"arXiv\s\d{4}\.\d{5}|doi\s10\.", " ".join(function.__doc__.split()))
