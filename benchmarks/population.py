"""Low-rank members decoding together: 32 members, 4 prompts each, up to 64 new tokens, SmolLM2-135M in bfloat16.

* perturbed_over_plain: tokens per second of the decode loop with members, over the same loop without noise, on the same
  work: no row stops before its 64 tokens.
* loop_over_generate: useful new tokens per second of the loop without noise, over transformers' `generate` on the same
  rows (an untouched model, one batch of all rows).
* fraction_of_gemm_limit: prompt and new tokens per second of the loop with members, over the rows per second at which
  the model's linear layers alone run at that batch (the faster of plain and packed).
* overhead_fraction: what of an iteration is not decoding: noise, laying out weights, waiting for rewards, the update,
  the digest.
* lowrank_over_fullrank: an iteration of 32 full-rank members through the same loop, over one of 32 low-rank members.
  Full-rank members decode one after another, so 4 are measured and counted eight times.

All in one process; medians over rounds in which every measurement takes its turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from common import arguments, report
from seedtune.data.prompts import PromptBatch
from seedtune.engines import loading
from seedtune.engines.base import Sampling
from seedtune.engines.hf.engine import HFEngine, reference
from seedtune.engines.specs import ModelSpec
from seedtune.es.population import CENTER, Population
from seedtune.perturb.lowrank.linear import PackedLinear
from seedtune.perturb.perturbation import PerturbationSpec
from seedtune.rewards.function import Reward
from seedtune.rewards.scorer import Scorer
from seedtune.rollout.fleet import LocalFleet
from seedtune.rollout.runner import RolloutSpec
from seedtune.tasks.conciseness import TASK

MEMBERS, PROMPTS, LENGTH, ROUNDS = 32, 4, 64, 5
ROWS = MEMBERS * PROMPTS
POPULATION = Population(MEMBERS, antithetic=True)


class Fleet:
    """One engine with what an iteration needs."""

    def __init__(self, rank: int | None, members: int = MEMBERS) -> None:
        self.members = members
        spec = ModelSpec(loading.EMBEDDED)
        low_rank = {} if rank is None else {"perturbation": "lowrank", "rank": rank}
        self.engine = HFEngine(*loading.load(spec), spec, PerturbationSpec(seed=1, sigma=0.01, **low_rank))
        rows = TASK.train[:PROMPTS]
        prompts = self.engine.encode([row["prompt"] for row in rows], LENGTH)
        columns = {"solution": [row["solution"] for row in rows]}
        self.batch = PromptBatch(tuple(range(PROMPTS)), tuple(prompts), columns)
        self.sampling = Sampling(LENGTH, rows_at_once=ROWS)
        self.fleet = LocalFleet(self.engine, POPULATION, RolloutSpec(self.sampling, ROWS, seed=1))
        self.scorer = Scorer([Reward("conciseness")], workers=1, timeout=60)

    def iteration(self, t: int) -> tuple[float, float, float]:
        """Seconds of an iteration, seconds of it spent decoding, and prompt and new tokens per second of decoding."""
        members = POPULATION.ask(t)
        started = time.perf_counter()
        rollouts = self.fleet.rollouts.run(members[: self.members], self.batch, self.scorer, t, {}, lambda *_: None)
        evaluated = (time.perf_counter() - started) * MEMBERS / self.members
        started = time.perf_counter()
        self.fleet.update(t, np.random.default_rng(t).standard_normal(MEMBERS).astype(np.float32), 0.0)
        self.fleet.digest()
        decoding = rollouts.seconds["generate"]
        return evaluated + time.perf_counter() - started, decoding, rollouts.tokens() / decoding

    def loop(self, t: int | None, stops: bool) -> tuple[float, float]:
        """The loop alone: useful new tokens, and all tokens, per second. Without noise (t None) rows share prefixes as
        members do.
        """
        engine = self.engine
        who = [m for m in (POPULATION.ask(t) if t is not None else range(MEMBERS)) for _ in range(PROMPTS)]
        ids = [p.ids for _ in range(MEMBERS) for p in self.batch.prompts]
        engine.center.set_members([CENTER] * ROWS if t is None else who)
        assert engine.decoder is not None
        written: list[int] = []
        before, engine.decoder.stops = engine.decoder.stops, engine.decoder.stops if stops else torch.tensor([-1])
        started = time.perf_counter()
        engine.decoder.decode(
            ids, who, self.sampling, 0, ROWS, engine.center.select_rows, lambda w: written.extend(len(x.ids) for x in w)
        )
        seconds = time.perf_counter() - started
        engine.decoder.stops = before
        engine.restore()
        return sum(written) / seconds, (sum(written) + sum(map(len, ids))) / seconds


def transformers_loop(model: torch.nn.Module, fleet: Fleet) -> float:
    """Useful new tokens per second of `generate`."""
    ids = [p.ids for _ in range(MEMBERS) for p in fleet.batch.prompts]
    texts = fleet.engine.texts
    started = time.perf_counter()
    out = reference.generate(model, ids, fleet.sampling, 0, texts.pad, texts.stops)
    seconds = time.perf_counter() - started
    useful = [next((n + 1 for n, token in enumerate(row) if token in texts.stops), len(row)) for row in out]
    return sum(useful) / seconds


def linear_layers_alone(model: torch.nn.Module) -> Callable[[], float]:
    """Rows per second of nothing but the model's linear layers, head included, at ROWS rows."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    inputs = {layer.in_features: torch.randn(ROWS, layer.in_features).bfloat16() for layer in layers}
    packed = [(layer.in_features, PackedLinear(layer.weight.detach(), None)) for layer in layers]

    def seconds(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        for _ in range(5):
            work()
        return (time.perf_counter() - started) / 5

    def measure() -> float:
        with torch.inference_mode():
            plain = seconds(lambda: [layer(inputs[layer.in_features]) for layer in layers])
            laid_out = seconds(lambda: [product(inputs[width]) for width, product in packed])
        return ROWS / min(plain, laid_out)

    return measure


if __name__ == "__main__":
    args = arguments(__doc__)
    low, full = Fleet(rank=1), Fleet(rank=None, members=4)
    untouched, _ = loading.load(ModelSpec(loading.EMBEDDED))
    limit = linear_layers_alone(untouched)
    rows: list[dict[str, float]] = []
    for t in range(ROUNDS + 1):  # the first does not count
        seconds, decoding, speed = low.iteration(t)
        useful, _ = low.loop(None, stops=True)
        rows.append(
            {
                "perturbed_over_plain": low.loop(t, stops=False)[1] / low.loop(None, stops=False)[1],
                "loop_over_generate": useful / transformers_loop(untouched, low),
                "fraction_of_gemm_limit": speed / limit(),
                "overhead_fraction": 1 - decoding / seconds,
                "lowrank_over_fullrank": full.iteration(t)[0] / seconds,
                "lowrank_seconds": seconds,
                "tokens_per_second": speed,
            }
        )
    results = {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}
    low.scorer.close()
    full.scorer.close()
    report(results, args.json)
