"""What solved examples in front of every prompt cost: Countdown's rung 2 on SmolLM2-135M, 64 low-rank members with 16
prompts each, 8 new tokens a row, with four examples and without, in turn.

* step_ratio: seconds of a decode step with examples over those without (the goal: at most 1.15).
* chunk_ratio: the same of everything, prefill included.
* share_of_...: where the time with examples goes: the examples (once per member), the rest of prompts, decode steps.

All in one process; medians over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import ClassVar
from unittest import mock

import torch

from common import arguments, report
from seedtune.engines import loading
from seedtune.engines.base import Sampling
from seedtune.engines.hf import decoder
from seedtune.engines.hf.engine import MOST_ROWS, HFEngine
from seedtune.engines.specs import ModelSpec
from seedtune.es.population import Population
from seedtune.perturb.perturbation import PerturbationSpec
from seedtune.tasks.countdown_ladder import configure

MEMBERS, PROMPTS, LENGTH, ROUNDS = 64, 16, 8, 5


class Timed(decoder._Batch):
    """Seconds of the parts of a chunk, and how many decode steps there were."""

    seconds: ClassVar[dict[str, float]] = defaultdict(float)
    steps: ClassVar[int] = 0

    def _timed(self, part: str, call: Callable[[], None]) -> None:
        started = time.perf_counter()
        call()
        self.seconds[part] += time.perf_counter() - started

    def share_prefixes(self) -> None:
        self._timed("examples", super().share_prefixes)

    def admit(self) -> None:
        self._timed("prompts", super().admit)

    def step(self) -> None:
        type(self).steps += 1
        self._timed("steps", super().step)


def chunk(engine: HFEngine, examples: int) -> dict[str, float]:
    """Seconds of each part, and of a step."""
    rows = configure(rungs=[2], examples=examples).train[:PROMPTS]
    prompts = engine.encode([row["prompt"] for row in rows], LENGTH)
    members = [member for member in Population(MEMBERS, antithetic=True).ask(1) for _ in prompts]
    Timed.seconds, Timed.steps = defaultdict(float), 0
    engine.set_members(members)
    engine.generate(prompts * MEMBERS, Sampling(LENGTH, rows_at_once=MOST_ROWS["cpu"]), 1)
    engine.restore()
    found = dict(Timed.seconds)
    return {**found, "step": found["steps"] / Timed.steps, "all": sum(found.values())}


def main() -> None:
    args = arguments(__doc__)
    with mock.patch.object(decoder, "_Batch", Timed):
        report(measure(), args.json)


def measure() -> dict[str, float]:
    spec = ModelSpec(loading.EMBEDDED)
    engine = HFEngine(*loading.load(spec), spec, PerturbationSpec(seed=1, sigma=0.01, perturbation="lowrank", rank=1))
    assert engine.decoder is not None
    engine.decoder.stops = torch.empty(0, dtype=torch.long)  # no row ends before its 8 tokens
    rounds = [{n: chunk(engine, n) for n in (4, 0)} for _ in range(ROUNDS)]
    ratios = {"step_ratio": "step", "chunk_ratio": "all"}
    results = {name: statistics.median(r[4][part] / r[0][part] for r in rounds) for name, part in ratios.items()}
    for part in ("examples", "prompts", "steps"):
        results[f"share_of_{part}"] = statistics.median(r[4][part] / r[4]["all"] for r in rounds)
    return {**results, "seconds": statistics.median(r[4]["all"] for r in rounds)}


if __name__ == "__main__":
    main()
