"""What a method is given: the task, the budget, and somewhere to put its checkpoints. A plug-in sees only this."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SeedtuneError


@dataclass
class Trainee:
    """One cell while it trains. `train(trainee)` of a method trains `model` on `train_dataset` (a list of rows with a
    `prompt`) for `reward_funcs` (callables with TRL's signature; their sum, weighted where there are `reward_weights`),
    generates at most `generations` completions of at
    most `max_completion_length` tokens, and calls `checkpoint` when `due` says so.
    """

    model: str
    train_dataset: list[dict[str, Any]]
    reward_funcs: list[Callable[..., Any]]
    max_completion_length: int
    generations: int
    evaluations: int
    seed: int
    settings: Mapping[str, Any]
    folder: Path
    shared: Mapping[str, Any] = field(default_factory=dict)
    reward_weights: list[float] | None = None
    _started: float | None = None
    _paused: float = 0.0
    _done: int = 0

    def start(self) -> None:
        """The clock starts: models are loaded, training begins."""
        self._started = time.perf_counter()

    def due(self, generations: int) -> bool:
        """Whether a checkpoint is due, now that so many completions have been generated in all."""
        with (self.folder / "progress.jsonl").open("a") as f:
            f.write(json.dumps({"generations": generations}) + "\n")
        return self._is_due(generations)

    def _is_due(self, generations: int) -> bool:
        return generations >= self.generations * (self._done + 1) / self.evaluations - 1e-9

    def checkpoint(self, generations: int, tokens: int, save: Callable[[Path], Any]) -> None:
        """`save` writes what `from_pretrained` loads, tokenizer included, into a folder. The clock stands meanwhile.

        Raises SeedtuneError when the budget is overdrawn.
        """
        if generations > self.generations:
            raise SeedtuneError(f"{generations} completions were generated; the budget is {self.generations}.")
        if self._started is None:
            raise SeedtuneError("call start() before training begins.")
        seconds = time.perf_counter() - self._started - self._paused
        stopped = time.perf_counter()
        target = self.folder / f"at-{generations}"
        target.mkdir(parents=True)
        save(target)
        line = {"generations": generations, "tokens": tokens, "seconds": seconds, "model": target.name}
        with (self.folder / "checkpoints.jsonl").open("a") as f:
            f.write(json.dumps(line) + "\n")
        while self._done < self.evaluations and self._is_due(generations):
            self._done += 1
        self._paused += time.perf_counter() - stopped
