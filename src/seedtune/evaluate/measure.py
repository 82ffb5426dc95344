"""All that `seedtune eval` measures of one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engines.base import Engine, Sampling
from ..es.population import Population
from ..fleet.answers import Answers
from ..fleet.local import LocalFleet, OnRows
from ..fleet.plan import Questions
from ..tasks.pool import Scorer
from . import score
from .kl import divergence
from .probe import perplexity
from .score import Estimate, Floats


@dataclass(frozen=True)
class Plan:
    """What to measure. `samples` responses a prompt are drawn as `sampling` says, and `greedy` answers beside them; a
    sample passes when its truth (the first function behind the `weights`) is at least 1 or, where `success` is given,
    when its reward is at least that.
    """

    questions: Questions
    weights: Sequence[float]
    length: int
    rows_at_once: int
    seed: int
    samples: int = 0
    sampling: Sampling = field(default_factory=lambda: Sampling(1))
    ks: Sequence[int] = ()
    success: float | None = None


@dataclass(frozen=True)
class Measured:
    """Estimates by name, and the greedy and the sampled answers' rows."""

    estimates: dict[str, Estimate]
    greedy: list[dict[str, Any]]
    sampled: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        metrics = {name: e.to_json() for name, e in self.estimates.items()}
        return {"metrics": metrics, "completions": self.greedy, "samples": self.sampled}


def measure(
    engine: Engine, plan: Plan, scorer: Scorer, base: Engine | None, on_rows: OnRows, step: Callable[[str], None]
) -> Measured:
    """Greedy reward and truths with intervals over prompts; the same of samples, pass@k, and KL from `base` (an engine
    that holds it; None: no KL); the probe's perplexity. `step` is told what comes next.
    """
    step("greedy answers")
    greedy = _answers(
        engine, plan, plan.questions, Sampling(plan.length, rows_at_once=plan.rows_at_once), scorer, on_rows
    )
    found = _means(greedy, plan, 1, "")
    sampled_rows: list[dict[str, Any]] = []
    if plan.samples:
        step(f"{plan.samples} samples a prompt")
        repeated = repeat(plan.questions, plan.samples)
        sampled = _answers(engine, plan, repeated, plan.sampling, scorer, on_rows)
        sampled_rows = sampled.rows(plan.weights)
        found |= _means(sampled, plan, plan.samples, "sampled/")
        found |= _passes(sampled, plan)
        if base is not None and plan.sampling.top_p == 1 and plan.sampling.top_k == 0:
            step("KL from the base model")
            completions, temperature = sampled.completions[0], plan.sampling.temperature
            found["kl"] = divergence(engine, repeated.prompts, completions, temperature, base)
    step("the probe")
    found["probe/perplexity"] = Estimate(perplexity(engine), float("nan"), 1)
    engine.restore()
    return Measured(found, greedy.rows(plan.weights), sampled_rows)


def repeat(questions: Questions, samples: int) -> Questions:
    """Every question `samples` times, one after another."""
    columns = {name: [v for v in values for _ in range(samples)] for name, values in questions.columns.items()}
    indices = tuple(i for i in questions.indices for _ in range(samples))
    return Questions(indices, tuple(p for p in questions.prompts for _ in range(samples)), columns)


def _answers(
    engine: Engine, plan: Plan, questions: Questions, sampling: Sampling, scorer: Scorer, on_rows: OnRows
) -> Answers:
    fleet = LocalFleet(engine, Population(2, False), sampling, chunk_size=2 * plan.rows_at_once, seed=plan.seed)
    return fleet.evaluate([None], questions, scorer, 0, {"global_step": 0, "max_steps": 0}, on_rows)


def _means(answers: Answers, plan: Plan, samples: int, prefix: str) -> dict[str, Estimate]:
    """Means over prompts of the means over a prompt's samples: prompts are the independent values."""

    def over_prompts(values: Floats) -> Estimate:
        with np.errstate(invalid="ignore"):
            per_prompt = [row[~np.isnan(row)].mean() if (~np.isnan(row)).any() else np.nan
                          for row in values.reshape(-1, samples)]  # fmt: skip
        return score.mean(per_prompt)

    found = {"reward": over_prompts(answers.total_M_P(plan.weights)[0])}
    alone = len(plan.weights) == 1  # then it is the reward
    for name, rewards_M_P in list(zip(answers.names, answers.rewards_F_M_P, strict=True))[alone:]:
        found[name] = over_prompts(rewards_M_P[0])
    tokens = np.array([len(c.ids) for c in answers.completions[0]], dtype=np.float64)
    found["length"] = over_prompts(tokens)
    return {prefix + name: estimate for name, estimate in found.items()}


def _passes(answers: Answers, plan: Plan) -> dict[str, Estimate]:
    """pass@k, where it is known what passes."""
    truths = answers.rewards_F_M_P[len(plan.weights) :, 0]
    if plan.success is not None:
        right = answers.total_M_P(plan.weights)[0] >= plan.success
    elif len(truths):
        right = truths[0] >= 1
    else:
        return {}
    counts = right.reshape(-1, plan.samples).sum(axis=1)
    ks = [k for k in plan.ks if k <= plan.samples]
    return {f"pass@{k}": score.mean([score.pass_at_k(plan.samples, int(c), k) for c in counts]) for k in ks}
