"""Reliability from rewards alone: simulated tables with known variances give them back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seedtune.es import reliability
from seedtune.es.reliability import Pooled


def table(random, units, prompts, signal, noise):
    """Effects with variance S between units and V within them."""
    own = random.normal(0, math.sqrt(signal), (units, 1))
    return own + random.normal(0, math.sqrt(noise), (units, prompts))


def mirrored(odd, even):
    """Rewards of members +, -, +, - with these odd and even parts."""
    return np.stack([even + odd, even - odd], axis=1).reshape(2 * len(odd), -1)


@pytest.mark.parametrize(("signal", "noise", "prompts"), [(1.0, 3.0, 2), (0.5, 0.5, 4), (0.0, 1.0, 3)])
def test_variances_are_those_that_were_put_in(signal, noise, prompts):
    found = [reliability.variances(table(np.random.default_rng(n), 64, prompts, signal, noise)) for n in range(300)]
    assert np.mean([v.signal for v in found]) == pytest.approx(signal, abs=0.08)
    assert np.mean([v.prompt for v in found]) == pytest.approx(noise, rel=0.03)
    assert found[0].prompts == prompts
    assert reliability.Variances(1.0, 3.0, 2, 64).reliability() == pytest.approx(0.4)
    assert reliability.Variances(1.0, 3.0, 2, 64).reliability(1) == pytest.approx(0.25)


def test_with_two_prompts_it_is_the_mean_product_over_the_mean_square():
    h = table(np.random.default_rng(1), 50, 2, 1.0, 2.0)
    expected = np.mean(h[:, 0] * h[:, 1]) / np.mean(h.mean(axis=1) ** 2)
    assert reliability.variances(h).reliability() == pytest.approx(expected)
    assert Pooled().add(h).value == pytest.approx(expected)


def test_members_may_answer_different_prompts_and_rewards_may_be_missing():
    h = table(np.random.default_rng(2), 40, 2, 1.0, 1.0)
    spread = np.full((40, 80), np.nan)
    for n in range(40):
        spread[n, 2 * n : 2 * n + 2] = h[n]
    assert reliability.variances(spread).signal == pytest.approx(reliability.variances(h).signal)
    spread[0, :2] = np.nan, 1.0  # one prompt left: it says nothing of what another would show
    assert reliability.variances(spread).signal == pytest.approx(reliability.variances(h[1:]).signal)
    assert math.isnan(reliability.variances(np.full((3, 2), np.nan)).reliability())
    assert Pooled().add(h[:, :1]) == Pooled()


def test_an_iteration_in_which_nothing_differs_says_nothing():
    known = Pooled().add(table(np.random.default_rng(3), 20, 2, 1.0, 1.0))
    assert known.add(np.zeros((20, 2))) == known
    assert math.isnan(Pooled().value)


def test_pooling_weighs_iterations_alike_whatever_their_scale():
    tables = [table(np.random.default_rng(n), 32, 2, 1.0, 2.0) for n in range(6)]
    plain = scaled = Pooled()
    for n, h in enumerate(tables):
        plain, scaled = plain.add(h), scaled.add(h * 10.0**n)
    assert scaled.value == pytest.approx(plain.value)
    assert scaled.error == pytest.approx(plain.error)


def test_its_standard_error_is_the_spread_over_runs():
    values, errors = [], []
    for n in range(300):
        pooled = Pooled()
        for t in range(5):
            pooled = pooled.add(table(np.random.default_rng((n, t)), 32, 2, 1.0, 2.0))
        values.append(pooled.value)
        errors.append(pooled.error)
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)  # a ratio of means is a little low
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


def test_recent_iterations_count_most():
    reliable, noise = table(np.random.default_rng(7), 64, 2, 1.0, 0.1), table(np.random.default_rng(8), 64, 2, 0.0, 1.0)
    before, after = Pooled().add(reliable).add(noise), Pooled().add(noise).add(reliable)
    ours, theirs = Pooled().add(reliable).value, Pooled().add(noise).value
    assert before.value == pytest.approx((reliability.DECAY * ours + theirs) / (1 + reliability.DECAY))
    assert after.value == pytest.approx((reliability.DECAY * theirs + ours) / (1 + reliability.DECAY))
    known = Pooled().add(noise)
    for n in range(40):
        known = known.add(table(np.random.default_rng((9, n)), 64, 2, 1.0, 0.1))
    assert known.value == pytest.approx(1 / 1.05, abs=0.015)  # what was long ago is forgotten


def test_its_interval_covers_what_was_put_in():
    inside = 0
    for n in range(200):
        pooled = Pooled()
        for t in range(6):
            pooled = pooled.add(table(np.random.default_rng((10, n, t)), 32, 2, 1.0, 2.0))
        inside += abs(pooled.value - 0.5) <= 1.645 * pooled.error
    assert 0.82 < inside / 200 < 0.95


def test_even_effects_have_the_variance_that_was_put_in():
    found = []
    for n in range(200):
        random = np.random.default_rng((11, n))
        even = random.normal(0, 2, (4, 3)) + np.array([0.0, 50.0, -50.0])
        found.append(np.mean(reliability.even_effects(mirrored(random.normal(0, 1, (4, 3)), even)) ** 2))
    assert np.mean(found) == pytest.approx(4.0, rel=0.1)


def test_single_members_are_compared_with_their_prompts_mean():
    rewards = np.array([[1.0, 10.0], [3.0, np.nan], [np.nan, 14.0], [np.nan, np.nan]])
    effects = reliability.effects(rewards, antithetic=False)
    scale = math.sqrt(2)  # of two members on a prompt, each is a part of the mean
    assert effects == pytest.approx(
        np.array([[-1, -2], [1, np.nan], [np.nan, 2], [np.nan, np.nan]]) * scale, nan_ok=True
    )
    assert reliability.rms(effects) == pytest.approx(scale * math.sqrt((1.5**2 + 1 + 4) / 3))
    assert np.isnan(reliability.effects(rewards[:1], antithetic=False)).all()
    assert reliability.rms(np.full((2, 2), np.nan)) == 0


def test_a_prior_counts_as_three_iterations():
    assert Pooled().with_prior(10) == pytest.approx(reliability.PRIOR)
    known = Pooled().add(table(np.random.default_rng(4), 32, 2, 1.0, 1.0))
    assert known.with_prior(32) == pytest.approx((known.value + 3 * reliability.PRIOR) / 4)


def test_mirrored_members_agree_where_noise_alone_costs_reward():
    random = np.random.default_rng(5)
    small, large = random.normal(0, 1, (200, 3)), random.normal(0, 3, (200, 3))
    assert reliability.mirrored_correlation(mirrored(small, large)) == pytest.approx(0.8, abs=0.05)
    assert reliability.mirrored_correlation(mirrored(large, small)) == pytest.approx(-0.8, abs=0.05)
    easy = mirrored(small, large) + np.array([0.0, 50.0, -50.0])  # what prompts have in common does not count
    assert reliability.mirrored_correlation(easy) == pytest.approx(0.8, abs=0.05)
    assert math.isnan(reliability.mirrored_correlation(mirrored(small[:1], large[:1])))


def test_the_interval_covers():
    inside = 0
    for n in range(60):
        low, high = reliability.interval(table(np.random.default_rng(n), 24, 4, 1.0, 2.0), 2, draws=200)
        inside += low <= 0.5 <= high
    assert inside >= 45  # 54 are expected of an exact interval
    h = table(np.random.default_rng(9), 24, 4, 1.0, 2.0)
    assert reliability.interval(h, 2, draws=50) == reliability.interval(h, 2, draws=50)


def test_the_error_of_the_mean_counts_prompts_where_they_vary():
    random = np.random.default_rng(6)
    rewards = random.normal(0, 1, (30, 1)) + random.normal(0, 5, (1, 20))
    alone = reliability.error_of_mean(rewards, prompts_vary=False)
    assert alone == pytest.approx(1 / math.sqrt(30), rel=0.3)
    assert reliability.error_of_mean(rewards, prompts_vary=True) == pytest.approx(5 / math.sqrt(20), rel=0.4)
    assert math.isnan(reliability.error_of_mean(rewards[:1], prompts_vary=False))
