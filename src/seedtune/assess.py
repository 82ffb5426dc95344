"""Measure an engine on a task, from settings and rows to estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import build
from .config import ESConfig
from .engines.base import Engine, Sampling
from .errors import DataError, RewardError
from .evaluate.measure import Measured, Plan, measure
from .fleet.local import OnRows
from .prompts import Prompts
from .tasks.pool import Scorer

Say = Callable[[str], None]


def silent(*_: Any) -> None:
    """For those who do not want to know."""


def assess(
    engine: Engine,
    args: ESConfig,
    rows: Any,
    reward_funcs: build.RewardFuncs,
    eval_funcs: build.RewardFuncs | None = None,
    *,
    samples: int = 0,
    ks: Sequence[int] = (),
    success: float | None = None,
    base: Engine | None = None,
    on_rows: OnRows = silent,
    say: Say = silent,
) -> Measured:
    """Greedy answers to `rows` and, with `samples`, responses at `args.temperature` (and its top_p and top_k).

    Raises DataError or RewardError, as training does.
    """
    rewards, truths = build.rewards(reward_funcs), build.rewards(eval_funcs)
    if not rewards:
        raise RewardError("reward_funcs is empty: there is nothing to measure. Give at least one function.")
    weights = args.reward_weights or [1.0] * len(rewards)
    if len(weights) != len(rewards):
        raise DataError(f"reward_weights has {len(weights)} numbers for {len(rewards)} reward functions.")
    prompts = Prompts(rows, rows, None)
    prompts.check_columns(rewards, truths)
    longest = prompts.encode(engine, args.max_completion_length)
    at_once = args.generation_batch_size or engine.rows_that_fit(longest)
    sampling = Sampling(args.max_completion_length, args.temperature, args.top_p, args.top_k, rows_at_once=at_once)
    plan = Plan(
        prompts.evaluation(), weights, args.max_completion_length, at_once, args.seed, samples, sampling, ks, success
    )
    with Scorer([*rewards, *truths], workers=args.reward_workers, timeout=args.reward_timeout) as scorer:
        return measure(engine, plan, scorer, base, on_rows, say)
