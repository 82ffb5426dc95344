"""Conversations against single turns of the same lengths, on SmolLM2-135M: 16 low-rank members with 8 prompts each; a
row writes the same tokens at once, or in three turns with a tool's result of 12 tokens read between them.

* ratio: tokens that the model writes per second, in three turns over at once (the goal: at least 0.7).
* tokens_per_second_single, tokens_per_second_turns: the two rates.

Turns are of 12 to 20 tokens, so rows leave the batch and come back at different steps. Medians over rounds, in turn, in
one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from unittest import mock

import torch

from common import arguments, report
from seedtune.engines import loading
from seedtune.engines.base import Completion, Sampling
from seedtune.engines.hf import decoder
from seedtune.engines.hf.engine import HFEngine
from seedtune.engines.specs import ModelSpec
from seedtune.es.population import Population
from seedtune.perturb.perturbation import PerturbationSpec

MEMBERS, PROMPTS, TURNS, RESULT, ROUNDS = 16, 8, 3, 12, 5


def length(row: int, turn: int) -> int:
    """Tokens that a row writes in a turn."""
    return 12 + (5 * row + 3 * turn) % 9


class FixedLengths(decoder._Batch):
    """Turns end by their length alone; rows without conversations write as much at once."""

    def _sample(self, slots: slice, logits: torch.Tensor) -> None:
        super()._sample(slots, logits)
        rows, written = self.rows[slots].tolist(), self.num_generated[slots].tolist()
        ended = [
            n - self.lengths[row] >= (length(row, self.turns.done[row]) if self.turns else total(row))
            for row, n in zip(rows, written, strict=True)
        ]
        self.finished[slots] = torch.tensor(ended)


def total(row: int) -> int:
    return sum(length(row, turn) for turn in range(TURNS))


class Results:
    """Conversations of TURNS turns, whose tools take no time."""

    def __init__(self, rows: int) -> None:
        self.done = [0] * rows

    def ended(self, row: int, ids: Sequence[int], *, stopped: bool) -> bool:
        self.done[row] += 1
        return self.done[row] < TURNS

    def resume(self, row: int) -> Sequence[int]:
        return [1000 + (7 * row + n) % 500 for n in range(RESULT)]


def main() -> None:
    args = arguments(__doc__)
    spec = ModelSpec("smollm2-135m-instruct")
    engine = HFEngine(*loading.load(spec), spec, PerturbationSpec(perturbation="lowrank", sigma=0.004))
    members = [member for member in Population(MEMBERS, antithetic=True).ask(1) for _ in range(PROMPTS)]
    texts = [f"Problem {n % PROMPTS}: how many apples do {n % PROMPTS} boxes hold?" for n in range(len(members))]
    sampling = Sampling(max(map(total, range(len(members)))) + (TURNS - 1) * RESULT + 1)
    prompts = engine.encode(texts, sampling.max_completion_length)
    written = sum(map(total, range(len(members))))

    def rate(turns: Results | None) -> float:
        done: dict[int, Completion] = {}
        engine.set_members(members)
        started = time.perf_counter()
        if turns is None:
            engine.generate(prompts, sampling, 0, done.update)
        else:
            engine.converse(prompts, sampling, 0, done.update, turns)
        seconds = time.perf_counter() - started
        assert len(done) == len(members)
        return written / seconds

    rates: dict[str, list[float]] = {"single": [], "turns": []}
    with mock.patch.object(decoder, "_Batch", FixedLengths):
        rate(None)
        for _ in range(ROUNDS):
            rates["single"].append(rate(None))
            rates["turns"].append(rate(Results(len(members))))
    found = {name: statistics.median(values) for name, values in rates.items()}
    report(
        {"ratio": found["turns"] / found["single"], **{f"tokens_per_second_{n}": v for n, v in found.items()}},
        args.json,
    )


if __name__ == "__main__":
    main()
