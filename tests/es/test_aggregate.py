"""Several samples of a prompt to one reward, against what each name says, by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.es.aggregate import MEAN, Aggregate, best_of_k, majority

NAN = np.nan


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=7), st.data())
def test_the_best_of_k_is_the_mean_over_all_draws(rewards, data):
    k = data.draw(st.integers(1, len(rewards)))
    draws = list(itertools.combinations(rewards, k))
    assert best_of_k(np.array(rewards), k) == pytest.approx(sum(map(max, draws)) / len(draws), abs=1e-12)


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 2), (6, 3), (4, 4)])
def test_of_zeros_and_ones_it_is_pass_at_k(n, c):
    passed = np.array([1.0] * c + [0.0] * (n - c))
    for k in range(1, n + 1):
        draws = list(itertools.combinations(passed, k))
        assert best_of_k(passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert best_of_k(passed, n) == float(c > 0)  # exactly
    with pytest.raises(ValueError, match="at least 7"):
        best_of_k(passed, 7)


def test_the_majoritys_reward():
    rewards = np.array([1.0, 5.0, 2.0, 7.0, 9.0])
    assert majority(rewards, np.array([3, 0, 3, 0, 1])) == 1.5  # 3 and 0 are given twice; 3 came first
    assert majority(rewards, np.array([0, 1, 2, 3, 3])) == 8
    assert majority(rewards, np.arange(5)) == 1


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Aggregate("mean"), [[2.0, 4.0], [NAN, 1.0]]),
        (Aggregate("max"), [[3.0, 4.0], [NAN, 2.0]]),
        (Aggregate("pass_at_k", 2), [[8 / 3, NAN], [NAN, 2.0]]),
        (Aggregate("majority"), [[2.5, 4.0], [NAN, 0.0]]),  # 6 is left out once, so 5 is as common, and came first
    ],
    ids=lambda x: x.how if isinstance(x, Aggregate) else "",
)
def test_what_is_left_out_takes_no_part(how, expected):
    rewards = np.array([[[1.0, 3.0, 2.0], [NAN, 4.0, NAN]], [[NAN] * 3, [0.0, 2.0, NAN]]])
    answers = np.array([[[0, 1, 1], [2, 3, 2]], [[4, 4, 4], [5, 6, 6]]])
    np.testing.assert_allclose(how(rewards, answers), expected)


def test_one_sample_is_its_prompts_reward_to_the_bit():
    rewards = np.array([[[0.1], [NAN]]])
    for how in (MEAN, Aggregate("pass_at_k"), Aggregate("majority"), Aggregate("max")):
        assert how(rewards).tobytes() == rewards[..., 0].tobytes()
