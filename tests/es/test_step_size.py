"""Step sizes by hand, and schedules as transformers has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from seedtune.es import schedule
from seedtune.es.step_size import D0, FIRST_BUDGET, LEAST_BUDGET, StepSize, most_of_a_step, step_kl

C = np.array([0.1, -0.2, 0.2], np.float32)  # squares: 0.09


def test_a_step_is_as_long_as_its_kl_allows():
    size = StepSize(curvature=2000.0)
    r = 0.3
    allowed = FIRST_BUDGET * 30 * r / (30 * r + D0)
    alpha = size.learning_rate(C, 30, 0.3)
    assert alpha == pytest.approx(math.sqrt(allowed / (2000 * 0.09)))
    assert step_kl(C, alpha, 2000.0) == pytest.approx(allowed)
    assert StepSize(2000.0, ratio=4.0).learning_rate(C, 30, 0.3) == pytest.approx(alpha / 2)


def test_the_steps_of_a_run_share_a_budget():
    alpha = StepSize(2000.0).learning_rate(C, 30, 0.3, most_of_a_step(100))
    assert step_kl(C, alpha, 2000.0) == pytest.approx(0.4 / 100)
    assert most_of_a_step(10**6) == 0.001
    unlimited = StepSize(2000.0).learning_rate(C, 30, 0.3)
    assert StepSize(2000.0).learning_rate(C, 30, 0.3, most_of_a_step(1)) == unlimited
    near = StepSize(2000.0, room=0.25).learning_rate(C, 30, 0.3, most_of_a_step(100))
    assert near == pytest.approx(alpha / 2)


@pytest.mark.parametrize(("coefficients", "reliability"), [(np.zeros(3, np.float32), 0.5), (C, -0.1), (C, math.nan)])
def test_no_step_where_nothing_differs_or_nothing_is_reliable(coefficients, reliability):
    assert StepSize(2000.0).learning_rate(coefficients, 30, reliability) == 0


def test_the_budget_shrinks_by_what_was_gained_and_measured_kl_corrects_the_next():
    size = StepSize(1.0).after(50, 1.0, predicted=0.1, measured=0.4)
    assert size.budget == pytest.approx(FIRST_BUDGET / 2)
    assert size.ratio == pytest.approx(2.0)
    assert StepSize(1.0).after(50, 1.0, 0.1, 1e6).ratio == pytest.approx(4.0)  # bounded
    assert StepSize(1.0).after(50, 1.0, 0.1, math.nan).ratio == 1.0
    assert StepSize(1.0).after(50, 1.0, 0.0, 0.0).ratio == 1.0
    near = StepSize(1.0).after(50, 0.3, 0.1, 0.1, distance=0.75)
    assert near.room == 0.25
    alone = StepSize(1.0, budget=near.budget).learning_rate(C, 30, 0.3)
    assert near.learning_rate(C, 30, 0.3) == pytest.approx(alone / 2)
    assert StepSize(1.0).after(50, 0.3, 0.1, 0.1, distance=3.0).learning_rate(C, 30, 0.3) == 0
    for _ in range(20):
        size = size.after(50, 1.0, math.nan, math.nan)
    assert size.budget == LEAST_BUDGET


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_schedules_are_those_of_transformers_behind_the_warm_up(kind, theirs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = theirs(optimizer, 3, 12)
    for t in range(1, 13):
        if t > 3:
            assert schedule.factor(kind, t, 12, 3) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_no_iteration_of_a_warm_up_is_lost():
    assert [schedule.factor("constant_with_warmup", t, 9, 3) for t in range(1, 6)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [schedule.factor("constant", t, 9, 3) for t in range(1, 4)] == [1.0] * 3
    assert all(schedule.factor(kind, 9, 9) > 0 for kind in ("linear", "cosine"))
