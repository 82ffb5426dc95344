"""The algorithm, on numbers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.es import shaping, update
from seedtune.es.population import Member, Population
from seedtune.noise import cpu, spec


def column(*rewards):
    return np.array(rewards, dtype=np.float64)[:, None]


def test_population_plain_and_antithetic():
    assert Population(3).ask(7) == [Member(7, 0, 0, 1), Member(7, 1, 1, 1), Member(7, 2, 2, 1)]
    assert [(m.pair, m.sign) for m in Population(4, antithetic=True).ask(0)] == [(0, 1), (0, -1), (1, 1), (1, -1)]


@pytest.mark.parametrize(("size", "antithetic"), [(1, False), (0, False), (3, True)])
def test_populations_that_cannot_be(size, antithetic):
    with pytest.raises(ValueError, match="population"):
        Population(size, antithetic)


def test_zscore_is_the_papers():
    z = shaping.shape(column(1, 2, 3, 4), "zscore")
    assert z == pytest.approx([-1.3416407, -0.4472136, 0.4472136, 1.3416407])


def test_sum_is_the_popular_one():
    assert shaping.shape(column(20, 10, 6, 4), "sum") == pytest.approx([0.5, 0.25, 0.15, 0.10])
    with pytest.raises(ValueError, match="never negative"):
        shaping.shape(column(-1, 2), "sum")


def test_centered_rank_shares_ties():
    assert shaping.shape(column(10, -5, 10, 99), "centered_rank") == pytest.approx([0, -0.5, 0, 0.5])


def test_group_takes_the_prompts_difficulty_out():
    rewards = np.array([[0.0, 101.0], [1.0, 100.0]])  # prompt 2 is easy for both; the members are equally good
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shaping.shape(rewards, "group") == pytest.approx([0, 0])
    better = np.array([[0.0, 101.0], [1.0, 102.0]])
    low, high = shaping.shape(better, "group")
    assert low == pytest.approx(-high)
    assert high == pytest.approx(0.5 / better.std())


def test_none_leaves_rewards_alone():
    assert shaping.shape(np.array([[1.0, 3.0], [5.0, 5.0]]), "none") == pytest.approx([2, 5])


@pytest.mark.parametrize("name", list(shaping.SHAPINGS))
def test_equal_rewards_give_nothing_and_say_so(name):
    for rewards in (column(0.1, 0.1, 0.1), np.full((4, 3), 0.1 + 0.2), column(0, 0)):
        with pytest.warns(shaping.DegenerateRewardsWarning, match="same reward"):
            assert not shaping.shape(rewards, name).any()


def test_rounding_is_not_a_difference():
    nearly = column(0.1 + 0.2, 0.3, 0.3)
    assert nearly[0] != nearly[1]
    with pytest.warns(shaping.DegenerateRewardsWarning):
        assert not shaping.shape(nearly, "zscore").any()


@pytest.mark.parametrize("name", [name for name in shaping.SHAPINGS if name != "pairs"])
def test_unscored_completions_are_left_out(name):
    nan = np.nan
    rewards = np.array([[1.0, nan], [nan, nan], [2.0, 4.0], [3.0, 3.0]])
    fitness = shaping.shape(rewards, name)
    assert fitness[1] == 0
    assert np.isfinite(fitness).all()
    assert fitness[2] > fitness[0]


def test_pairs_are_compared_on_their_own_prompts_at_unit_rms():
    nan = np.nan
    rewards = np.array([[3.0, nan, 1.0], [1.0, nan, 1.0], [nan, 5.0, 0.0], [nan, 9.0, nan]])
    fitness = shaping.shape(rewards, "pairs")  # differences: 0.5 on two prompts, -2 on one
    assert fitness == pytest.approx(np.array([0.5, -0.5, -2.0, 2.0]) / np.sqrt((0.25 + 4) / 2))
    c = update.coefficients(Population(4, antithetic=True).ask(1), fitness)
    merged = update.directions(Population(4, antithetic=True).ask(1), c)[1]
    assert np.sum(merged.astype(float) ** 2) == pytest.approx(2 / 4)
    assert merged[0] > 0 > merged[1]
    with pytest.warns(shaping.DegenerateRewardsWarning, match="all members earned the same"):
        assert not shaping.shape(np.array([[1.0], [1.0], [7.0], [7.0]]), "pairs").any()
    unscored = np.array([[1.0], [nan], [2.0], [3.0]])
    assert shaping.shape(unscored, "pairs") == pytest.approx([0, 0, -1, 1])


def test_coefficients_and_directions():
    members = Population(4, antithetic=True).ask(0)
    c = update.coefficients(members, np.array([1.0, -1.0, 0.5, 0.5]))
    assert c.dtype == np.float32
    assert c == pytest.approx([0.25, 0.25, 0.125, -0.125])
    pairs, merged = update.directions(members, c)
    assert pairs == [0]
    assert merged == pytest.approx([0.5])


RULES = [
    update.UpdateRule(),
    update.UpdateRule("momentum"),
    update.UpdateRule("adam"),
    update.UpdateRule(weight_decay=0.1),
    update.UpdateRule("adam", weight_decay=0.3, anchored=True),
    update.UpdateRule("momentum", weight_decay=0.3, anchored=True),
]


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 2500), st.integers(0, 50), st.integers(0, 5))
def test_the_fused_update_equals_the_reference_bit_for_bit(rule, size, start, count):
    rng = np.random.default_rng(size)
    theta = rng.standard_normal(size).astype(np.float32)
    anchor = rng.standard_normal(size).astype(np.float32) if rule.anchored else None
    m = np.zeros(size if rule.moments > 0 else 0, np.float32)
    v = np.zeros(size if rule.moments > 1 else 0, np.float32)
    fast, fm, fv = theta.copy(), m.copy(), v.copy()
    for t in range(1, 4):
        keys = [spec.member_key(1, t, n) for n in range(count)]
        c = rng.standard_normal(count).astype(np.float32)
        noise = [spec.normals(k, 9, spec.Purpose.FULL, start, start + size) for k in keys]
        g = update.weighted_noise(noise, c) if noise else np.zeros_like(theta)
        before = theta
        theta, m, v = update.apply(theta, g, rule, 0.01, t, m, v, anchor)
        step = cpu.Step(0.01, rule.weight_decay, rule.beta1, rule.beta2, rule.epsilon, *rule.corrections(t))
        anchored = cpu.Weights.of(anchor, cpu.F32) if anchor is not None else cpu.NO_WEIGHTS
        moved = cpu.update(cpu.Weights.of(fast, cpu.F32), keys, c, 9, step, fm, fv, anchored, start)
        assert np.array_equal(fast.view(np.uint32), theta.view(np.uint32))
        assert moved == pytest.approx(float(np.sum((theta - before).astype(np.float64) ** 2)))
        if rule.moments:
            assert np.array_equal(fm, m)
            assert rule.moments == 1 or np.array_equal(fv, v)


def test_an_update_in_shards_gives_the_same_bits():
    theta = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    keys = [spec.member_key(1, 0, n) for n in range(5)]
    c = np.linspace(-1, 1, 5).astype(np.float32)
    whole, parts = theta.copy(), theta.copy()
    cpu.update(cpu.Weights.of(whole, cpu.F32), keys, c, 3, cpu.Step(0.1))
    for a, b in [(0, 1001), (1001, 1002), (1002, 3000)]:
        cpu.update(cpu.Weights.of(parts[a:b], cpu.F32), keys, c, 3, cpu.Step(0.1), start=a)
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("optimizer", update.OPTIMIZERS)
def test_each_rule_climbs_a_hill(optimizer):
    """ES on -|theta - target|^2 with every part real: population, noise, shaping, coefficients, update."""
    rule = update.UpdateRule(optimizer)
    population = Population(16, antithetic=True)
    target = np.linspace(-1, 1, 10).astype(np.float32)
    theta, m, v = np.zeros(10, np.float32), np.zeros(10, np.float32), np.zeros(10, np.float32)
    rate = {"sgd": 0.1, "momentum": 0.02, "adam": 0.05}[optimizer]
    for t in range(80):
        members = population.ask(t)
        noise = {n.pair: spec.normals(spec.member_key(0, t, n.pair), 0, spec.Purpose.FULL, 0, 10) for n in members}
        rewards = column(*(-np.sum((theta + 0.05 * n.sign * noise[n.pair] - target) ** 2) for n in members))
        pairs, c = update.directions(members, update.coefficients(members, shaping.shape(rewards, "zscore")))
        g = update.weighted_noise([noise[p] for p in pairs], c)
        theta, m, v = update.apply(theta, g, rule, rate, t + 1, m, v)
    assert np.sum((theta - target) ** 2) < 0.1 * np.sum(target**2)
