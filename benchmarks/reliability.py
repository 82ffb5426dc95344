"""How reliable rewards are when only a part of a model moves, or by less: what a step could gain, before it is taken.

    python benchmarks/reliability.py [--pairs 32] [--prompts 8] [--only NAME ...]

For each part (a kind of matrix, a third of the layers, norms) sigma is found at which a member is KL nats per token
from the center; then mirrored pairs answer the same training prompts (conciseness, SmolLM2-135M). With S and V the
variances of pairs' effects and of what they do on single prompts (es/reliability.py), a step of a given KL gains, to
first order and with P prompts per pair, in proportion to sqrt(S r / KL), r = S / (S + V / P): the column `merit`, for
P = 2, squared, so that it counts as completions do. Goes on where it was stopped; results/reliability.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from seedtune import ESConfig
from seedtune.data import dataset
from seedtune.es import reliability
from seedtune.es.population import CENTER, Population
from seedtune.evaluation.evaluate import noop
from seedtune.rollout.runner import LocalExecutor, RolloutRunner, RolloutSpec
from seedtune.training import calibration, factory
from seedtune.training.trainer import ESTrainer

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "reliability.json"

LINEAR: dict[str, Any] = {"scope": "linear"}
PARTS: dict[str, tuple[dict[str, Any], float]] = {
    "linear": (LINEAR, 0.2),
    "norms": ({"scope": "norm", "lowrank_vectors": True}, 0.2),
    "layers 1-10": ({"scope": r"layers\.\d\..*_proj\."}, 0.2),
    "layers 11-20": ({"scope": r"layers\.1\d\..*_proj\."}, 0.2),
    "layers 21-30": ({"scope": r"layers\.2\d\..*_proj\."}, 0.2),
    "q, k": ({"scope": r"\.[qk]_proj\."}, 0.2),
    "v, o": ({"scope": r"\.[vo]_proj\."}, 0.2),
    "gate, up": ({"scope": r"\.(gate|up)_proj\."}, 0.2),
    "down": ({"scope": r"\.down_proj\."}, 0.2),
    "linear, KL 0.05": (LINEAR, 0.05),
    "embedding": ({"scope": "embed", "lowrank_embeddings": True}, 0.2),
    "linear, rank 4": ({**LINEAR, "rank": 4}, 0.2),
}


def measure(settings: dict[str, Any], target: float, pairs: int, prompts: int) -> dict[str, Any]:
    args = ESConfig(
        output_dir="/nowhere", perturbation="lowrank", antithetic=True, sigma=0.001, learning_rate=0.001,
        population_size=2 * pairs, prompts_per_step=prompts, max_completion_length=48, guard=False, drift_samples=0,
        load_best_model_at_end=False, dtype="float32", threads=1, **settings,
    )  # fmt: skip
    rows = dataset.load(str(HERE / "data/questions-train.jsonl"))
    trainer = ESTrainer("smollm2-135m-instruct", "conciseness", args, train_dataset=rows)
    engine, args = trainer.engine, trainer.args
    batch = trainer.prompts.some(args.seed, prompts)
    calibration.TARGET = target
    sigma = calibration.calibrate(engine, batch.prompts, args.max_completion_length).sigma
    engine.set_sigma(sigma)
    spec = RolloutSpec(factory.sampling(args, args.generation_batch_size), args.chunk_size or 1, args.seed)
    runner = RolloutRunner(LocalExecutor(engine), spec, mixes_members=engine.mixes_members)
    began = time.perf_counter()
    with trainer._scorer(evaluation=False) as scorer:
        ask = Population(2 * pairs, antithetic=True).ask
        rewards_M_P = runner.run(ask(1), batch, scorer, 0, {}, noop).total_M_P(trainer.schedule.weights)
        center_P = runner.run([CENTER], batch, scorer, 0, {}, noop).total_M_P(trainer.schedule.weights)[0]
    return {
        "sigma": sigma,
        "kl": target,
        "seconds": time.perf_counter() - began,
        "center": center_P.tolist(),
        "rewards_M_P": rewards_M_P.tolist(),
    }


def row(name: str, found: dict[str, Any]) -> list[str]:
    rewards_M_P = np.array(found["rewards_M_P"])
    odd = reliability.odd_effects(rewards_M_P)
    variances = reliability.variances(odd)
    low, high = reliability.interval(odd, 2)
    r = variances.reliability(2)
    merit = variances.signal * r / found["kl"]
    center, members = np.mean(found["center"]), rewards_M_P.mean()
    correlation = reliability.mirrored_correlation(rewards_M_P)
    values = [found["sigma"], center, members, variances.signal**0.5, variances.prompt**0.5, r, merit, correlation]
    return [name, *(f"{value:.3g}" for value in values), f"{low:.2f} to {high:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=list(PARTS))
    parsed = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    head = ["part", "sigma", "center", "members", "sqrt S", "sqrt V", "r (P = 2)", "merit", "mirrored corr.", "r, 90 %"]
    for name in parsed.only:
        if name not in results:
            results[name] = measure(*PARTS[name], parsed.pairs, parsed.prompts)
            RESULTS.write_text(json.dumps(results) + "\n")
            print(" | ".join(row(name, results[name])), flush=True)
    for line in [head, ["---"] * len(head), *(row(name, results[name]) for name in parsed.only if name in results)]:
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
