"""Which sigma learns most for what it moves? Members of one iteration at several sigmas, on the same prompts.

Per sigma: kl (of a member from the center, nats per token); center and members (mean reward on the prompts); cost (the
center's reward minus the members', over the standard deviation of the center's rewards); effect (root mean square of
half a pair's difference); reliability (of a pair's difference over its prompts, with its standard error); and gain: the
reward that a unit-RMS step is expected to win, to first order, at a KL of 0.01 nats per token: 0.1 sqrt(S r N / KL)
with S the variance of the signal, r the reliability, N pairs.

    python benchmarks/sigma.py --task countdown --task_args '{rungs: [2]}' --stop_strings '["\\n"]'
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import yaml

from seedtune import ESConfig, ESTrainer
from seedtune.es import reliability
from seedtune.es.population import CENTER
from seedtune.report.progress import Progress
from seedtune.tasks.registry import builtin
from seedtune.training.calibration import member_kl

SIGMAS = (0.002, 0.004, 0.008, 0.016, 0.03)


def measure(trainer: ESTrainer, sigma: float, iteration: int) -> dict[str, float]:
    args, prompts = trainer.args, trainer.prompts.batch(1, 1)
    kl = member_kl(trainer.engine, prompts.prompts, args.max_completion_length, sigma)
    trainer.fleet.set_sigma(sigma)
    with trainer._scorer(evaluation=False) as scorer:
        run = trainer.fleet.rollouts.run
        center = run([CENTER], prompts, scorer, 0, {}, lambda *_: None).total_M_P([1.0])[0]
        rewards_M_P = run(trainer.population.ask(iteration), prompts, scorer, iteration, {}, lambda *_: None).total_M_P(
            [1.0]
        )
    effects = reliability.odd_effects(rewards_M_P)
    found, pooled = reliability.variances(effects), reliability.Pooled().add(effects)
    r, signal = pooled.value, max(found.signal, 0.0)
    return {
        "sigma": sigma, "kl": kl, "center": float(np.nanmean(center)), "members": float(np.nanmean(rewards_M_P)),
        "cost": float((np.nanmean(center) - np.nanmean(rewards_M_P)) / np.nanstd(center)),
        "effect": reliability.rms(effects), "reliability": r, "error": pooled.error,
        "gain": 0.1 * math.sqrt(signal * max(r, 0.0) * len(effects) / kl),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--task", default="conciseness")
    parser.add_argument("--task_args", type=yaml.safe_load, default={})
    parser.add_argument("--stop_strings", type=yaml.safe_load, default=[])
    parser.add_argument("--reward", help="one of the task's rewards; default: the last")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    task: Any = builtin(given.task).with_args(given.task_args)
    rewards = {r.__name__: r for r in task.rewards}
    reward = rewards[given.reward] if given.reward else list(rewards.values())[-1]
    args = ESConfig(
        perturbation="lowrank", population_size=64, antithetic=True, prompts_per_step=given.prompts, sigma=0.01,
        max_completion_length=given.length, stop_strings=given.stop_strings, fitness_shaping="pairs",
    )  # fmt: skip
    trainer = ESTrainer(given.model, [reward], args, train_dataset=list(task.train), progress=Progress())
    print(given.task, reward.__name__)
    for seed in range(1, given.seeds + 1):
        for sigma in SIGMAS:
            found = measure(trainer, sigma, seed)
            print("  ".join(f"{name} {value:8.4g}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
