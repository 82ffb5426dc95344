"""What a center is judged by: values per prompt where completions have them, else the metric."""

from __future__ import annotations

import math

import pytest

from seedtune.evaluation import best


def center(step, values, metric="eval/reward", column="reward", **metrics):
    known = [v for v in values if v is not None]
    found = {"step": step, metric: sum(known) / len(known), "eval/kl": 0.1 * step, **metrics}
    return best.candidate(metric, found, [{column: v, "other": "text"} for v in values])


@pytest.mark.parametrize(
    ("metric", "column"),
    [("eval/reward", "reward"), ("eval/correct", "correct"), ("eval/rewards/letters/mean", "letters")],
)
def test_values_per_prompt_are_those_of_the_completions(metric, column):
    old = center(0, [0.0, 1.0, 0.0, 1.0], metric, column)
    assert list(old.values_P) == [0, 1, 0, 1]
    assert best.compare(center(1, [1.0, 1.0, 0.0, 1.0], metric, column), old) == 0  # one of four: chance
    assert best.compare(center(1, [0.4, 1.5, 0.5, 1.4], metric, column), old) == 1
    assert best.compare(center(1, [-0.4, 0.5, -0.5, 0.6], metric, column), old) == -1


def test_metrics_without_values_per_prompt_are_compared_themselves():
    for name, other in (("eval/other", "other"), ("eval/completions/mean_length", "reward")):
        old, new = (best.candidate(name, {"step": n, name: 1.0 + n / 100}, [{other: "text"}] * 8) for n in (0, 1))
        assert not old.values_P.size
        assert best.compare(new, old) == 1
        assert best.compare(new, old, greater_is_better=False) == -1
        assert math.isnan(old.kl)


def test_prompts_that_were_not_scored_do_not_count():
    old = center(0, [0.0, 0.0, 0.0, None, 0.0])
    assert best.compare(center(1, [0.4, 0.5, 0.5, 0.4, None]), old) == 1
    assert best.compare(center(1, [-9.0, None, None, 0.0, None]), old) == -1  # one prompt in common: by the metric


def test_less_may_be_better():
    old, new = center(0, [5.0, 6.0, 7.0]), center(1, [4.0, 5.1, 6.0])
    assert best.compare(new, old, greater_is_better=False) == 1
    assert best.replaces(new, old, greater_is_better=False)
    assert not best.replaces(old, new, greater_is_better=False)
    for metric in ("eval/kl", "eval/loss", "eval/perplexity", "eval/distance", "eval/hacked"):
        assert not best.more_is_better(metric)


def test_a_center_that_did_not_move_is_not_better():
    old = center(0, [0.25] * 6)
    assert best.compare(center(3, [0.25] * 6), old) == 0
    assert not best.replaces(center(3, [0.25] * 6), old)
    assert best.compare(center(3, [0.5] * 6), old) == 1  # the same change on every prompt is no chance
