"""Curriculum: what is drawn, when a level is opened, and a state that goes on as if it had never stopped."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from seedtune.data.curriculum import REVIEW, Curriculum, CurriculumSpec
from seedtune.errors import ConfigError, DataError

LEVELS = [3] * 20 + [1] * 20 + [2] * 20


def made(levels=LEVELS, **setting):
    return Curriculum(levels, CurriculumSpec.of({"column": "level", **setting}), seed=7)


def asked(curriculum, rows):
    return Counter(curriculum.names[level] for level in curriculum._level_of_row[rows])


def iterate(curriculum, skill, count=10):
    """An iteration in which every prompt of a level is solved as often as `skill` says."""
    rows = curriculum.draw(count)
    curriculum.after(rows, np.array([skill[LEVELS[row]] for row in rows]))
    return asked(curriculum, rows)


@pytest.mark.parametrize(
    ("skill", "open_levels"),
    [
        ({1: 0.6, 2: 0.0, 3: 0.5}, 1),  # 0.6 is not more than 0.6; what is behind a level that is too hard stays closed
        ({1: 0.7, 2: 0.0, 3: 0.0}, 2),
        ({1: 0.3, 2: 0.1, 3: 0.0}, 2),
        ({1: 0.0, 2: 0.0, 3: 0.0}, 1),
        ({1: 0.9, 2: 0.9, 3: 0.9}, 3),
    ],
)
def test_the_first_iteration_asks_all_levels_and_opens_those_that_are_solved(skill, open_levels):
    one = made()
    assert one.names == [1, 2, 3]
    assert iterate(one, skill, 12) == {1: 4, 2: 4, 3: 4}
    assert one.open == open_levels


def test_the_next_level_is_opened_when_more_than_high_is_solved():
    one = made()
    iterate(one, {1: 0.6, 2: 0.0, 3: 0.0})
    assert iterate(one, {1: 1.0, 2: 0.3, 3: 0.0}) == {1: 10}
    assert one.open == 2
    assert iterate(one, {1: 1.0, 2: 0.3, 3: 0.0})[2] >= 8, "what is mastered is looked at again"
    assert one.open == 2


def test_what_is_neither_easy_nor_hard_is_asked_most():
    one = made()
    one.open = 3
    for level, success in enumerate((0.9, 0.3, 0.02)):
        one._asked[level], one._solved[level] = 10.0, 10 * success
    assert one.shares() == pytest.approx([REVIEW / (1 + 2 * REVIEW), 1 / (1 + 2 * REVIEW), REVIEW / (1 + 2 * REVIEW)])
    one._solved[1] = 0.0
    assert one.shares().index(max(one.shares())) == 2, "nothing is in between: the nearest to it"


def test_a_level_that_is_unlearned_is_asked_again():
    one = made()
    for skill in [{1: 1.0, 2: 0.3, 3: 0.0}, *[{1: 1.0, 2: 0.3}] * 2, *[{1: 0.0, 2: 0.3}] * 4]:
        iterate(one, skill)
    assert 0.1 <= one.success(0) <= 0.6
    assert iterate(one, {1: 0.5, 2: 0.3}) == {1: 5, 2: 5}


def test_rows_of_a_level_come_in_turn_and_none_twice_in_an_iteration():
    one = made()
    one.open = 1
    seen = [one.draw(10)]
    one._asked[0] = 1e-9
    one.after(seen[0], np.zeros(10))
    seen.append(one.draw(10))
    assert sorted(seen[0] + seen[1]) == list(range(20, 40))
    assert len(one.draw(50)) == 20


def test_it_goes_on_from_its_state_as_if_it_had_never_stopped():
    skill = {1: 0.7, 2: 0.65, 3: 0.4}
    one, other = made(), made()
    for _ in range(3):
        iterate(one, skill)
    other.load_state({name: float.fromhex(value.hex()) for name, value in one.state().items()})
    for _ in range(5):
        assert iterate(one, skill) == iterate(other, skill)
        assert one.state() == other.state()
    assert one.open == 3


def test_prompts_without_a_reward_say_nothing():
    one = made()
    one.after(one.draw(4), np.array([math.nan] * 4))
    assert one.success(0) is None
    assert one.shares() == pytest.approx([1 / 3] * 3)
    assert one.metrics() == {"curriculum/open": 3.0}


def test_the_prompts_of_a_member_are_of_one_level_and_every_open_level_is_asked():
    one = made()
    assert [LEVELS[row] for row in one.draw(12, block=4)] == [1] * 4 + [2] * 4 + [3] * 4
    for level, success in enumerate((0.9, 0.3, 0.02)):
        one._asked[level], one._solved[level] = 10.0, 10 * success
    assert asked(one, one.draw(20, block=4)) == {1: 4, 2: 12, 3: 4}
    assert asked(one, one.draw(10, block=4)) == {1: 1, 2: 8, 3: 1}, "10 are no blocks of 4"
    assert asked(one, one.draw(8, block=4)) == {2: 8}, "two blocks for three levels"


def test_texts_are_levels_in_the_order_in_which_they_appear():
    assert made(["easy", "hard", "easy", "a"]).names == ["easy", "hard", "a"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({}, "column is missing"),
        ({"column": "level", "lo": 1}, "there is no 'lo'"),
        ({"column": "level", "low": 0.7}, "low < high"),
        ({"column": "level", "high": "0.7"}, "low < high"),
        ({"column": "level", "success": 3}, "names a reward function"),
    ],
)
def test_a_setting_that_is_none_is_refused(setting, says):
    with pytest.raises(ConfigError, match=says):
        CurriculumSpec.of(setting)


@pytest.mark.parametrize("column", [[1, None], [[1], [2]], [1, "a"]])
def test_a_column_that_orders_nothing_is_refused(column):
    with pytest.raises(DataError, match="how hard the row is"):
        made(column)
