"""Evaluations of the center during a run: its rewards and gold metrics, how far it has moved, and whether the reward is
being hacked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ..data.prompts import Prompts
from ..engines.base import Engine
from ..es.population import CENTER
from ..evaluation.calibration import calibration_metrics
from ..evaluation.diversity import diversity_metrics
from ..evaluation.drift import drift, unscored_samples
from ..evaluation.hacking import Rows, hacking, same_answers
from ..rewards.calibration import CORRECT
from ..rewards.function import Reward
from ..rewards.scorer import Scorer
from ..rewards.trainer_state import Snapshot
from ..rollout.fleet import Fleet
from ..rollout.rollouts import Rollouts, per_prompt
from ..rollout.runner import OnRows, UnscoredSamples
from .reward_schedule import RewardSchedule
from .run import Run

log = logging.getLogger(__name__)

#: A mean of members' rewards is taken over so many iterations, at most.
_RECENT = 10


class CenterEvaluation:
    """Measures the center of a run on the prompts of evaluations."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        fleet: Fleet,
        prompts: Prompts,
        rewards: Sequence[Reward],
        gold_metrics: Sequence[Reward],
    ) -> None:
        self.run, self.engine, self.fleet, self.prompts = run, engine, fleet, prompts
        self.rewards, self.gold_metrics = rewards, gold_metrics

    def rewarded(
        self,
        scorer: Scorer,
        weights: Sequence[float],
        state: Snapshot,
        on_rows: OnRows,
        samples: UnscoredSamples | None = None,
    ) -> tuple[Rollouts, dict[str, float]]:
        """Its completions, and metrics of what they earn by these `weights`; `samples` are decoded beside. `state` is
        what reward functions see of the trainer; `on_rows` hears of rows as they are done.
        """
        batch = self.prompts.evaluation()
        rollouts = self.fleet.rollouts.run([CENTER], batch, scorer, 0, state, on_rows, samples)
        metrics = rollouts.metrics(weights)
        totals = rollouts.total_M_P(weights)
        metrics["reward_std"] = float(np.std(totals[~np.isnan(totals)])) if not np.isnan(totals).all() else 0.0
        return rollouts, {f"eval/{name}": value for name, value in metrics.items()}

    def full(
        self, scorer: Scorer, schedule: RewardSchedule, state: Snapshot, on_rows: OnRows, *, comparable: bool
    ) -> tuple[Rows, dict[str, float]]:
        """All that an evaluation during a run measures: rows of the completions, and metrics. `comparable`: members
        answer the same kind of prompts as the center.
        """
        args = self.run.args
        count = args.drift_samples if args.restore == "exact" else 0
        prompts = self.prompts.evaluation().prompts
        moved = count > 0 and self.run.step > 0
        samples = unscored_samples(prompts, count) if moved and not self.prompts.texts else None
        rollouts, metrics = self.rewarded(scorer, schedule.final_weights, state, on_rows, samples)
        read = prompts if moved and self.prompts.texts else ()
        rows = rollouts.rows(schedule.final_weights)
        more = {**(drift(self.engine, samples, read) if count else {}), **self._check_hacking(rows)}
        metrics |= {f"eval/{name}": value for name, value in more.items()}
        if (recent := self._recent_rewards(schedule)) and comparable and schedule.is_last:
            metrics["es/noise_cost"] = metrics["eval/reward"] - sum(recent) / len(recent)
        return rows, metrics

    def _recent_rewards(self, schedule: RewardSchedule) -> list[float]:
        """What members earned since the evaluation before, or the last return, in at most the last few iterations."""
        evaluated = [line["step"] for line in self.run.evaluations[-1:]]
        since = max([*evaluated, *(undone.t for undone in self.run.journal.returns)], default=0)
        lines = [line for line in self.run.iterations if line["step"] > since]
        stage = schedule.state().get("reward_stage")
        return [line["reward"] for line in lines if line.get("control", {}).get("reward_stage") == stage][-_RECENT:]

    def _check_hacking(self, after: Rows) -> dict[str, float]:
        """`hacked`: 1 when the reward has risen since the first evaluation while a gold metric fell or stayed at its
        least, or when different prompts get the same answer. Beside it, `collapsed`: 1 where the last holds and pays,
        with a reward without labels; the diversity of answers; and how calibrated confidences are.
        """
        first = self.run.evaluations[:1]
        before = self.run.completions(first[0]) if first else []
        gold_metrics = [*(f.name for f in self.gold_metrics), *([CORRECT] if after and CORRECT in after[0] else [])]
        columns = self.prompts.evaluation().columns
        same = [] if self.prompts.texts else same_answers(before, after, columns)
        findings = [*hacking(per_prompt(before), per_prompt(after), gold_metrics), *same]
        for finding in findings:
            log.warning("iteration %d: %s.", self.run.step, finding)
        unlabeled = any(reward.is_confidence for reward in self.rewards)
        found = {name: estimate.mean for name, estimate in calibration_metrics(after).items()}
        found |= {"hacked": float(bool(findings))} if self.gold_metrics or findings or unlabeled else {}
        found |= {"collapsed": 1.0} if same and before and unlabeled else {}
        return found | diversity_metrics(after, self.rewards)
