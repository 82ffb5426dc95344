"""What a method is given: the task, the budget, and a folder for its checkpoints. A plug-in sees only this."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SeedtuneError


@dataclass
class MethodContext:
    """One cell while it trains. `train(context)` of a method trains `model` on `train_dataset` (a list of rows with a
    `prompt`) for `reward_funcs` (callables with TRL's signature; their sum, weighted where there are `reward_weights`),
    with `tools` and an `environment_factory` where there are any (TRL's arguments; what the environment's `get_reward`
    gives counts beside the functions), generates at most `num_completions` completions of at most
    `max_completion_length` tokens, which end with one of the `stop_strings`, too, and calls
    `checkpoint` when `due` returns True.
    """

    model: str
    train_dataset: list[dict[str, Any]]
    reward_funcs: list[Callable[..., Any]]
    max_completion_length: int
    num_completions: int
    evaluations: int
    seed: int
    settings: Mapping[str, Any]
    folder: Path
    shared: Mapping[str, Any] = field(default_factory=dict)
    reward_weights: list[float] | None = None
    tools: list[Callable[..., Any]] | None = None
    environment_factory: Callable[[], Any] | None = None
    stop_strings: Sequence[str] = ()
    _started: float | None = None
    _paused: float = 0.0
    _done: int = 0

    @property
    def generations(self) -> int:
        """Deprecated: the name of `num_completions` in 0.1.0."""
        warnings.warn("context.generations is now context.num_completions.", DeprecationWarning, stacklevel=2)
        return self.num_completions

    def start(self) -> None:
        """Start the clock: models are loaded, training begins."""
        self._started = time.perf_counter()

    def due(self, num_completions: int) -> bool:
        """Whether a checkpoint is due, now that so many completions have been generated in all."""
        with (self.folder / "progress.jsonl").open("a") as f:
            f.write(json.dumps({"num_completions": num_completions}) + "\n")
        return self._is_due(num_completions)

    def _is_due(self, num_completions: int) -> bool:
        return num_completions >= self.num_completions * (self._done + 1) / self.evaluations - 1e-9

    def checkpoint(self, num_completions: int, tokens: int, save: Callable[[Path], Any]) -> None:
        """`save` writes what `from_pretrained` loads, tokenizer included, into a folder; that time is not counted.

        Raises SeedtuneError when the budget is exceeded.
        """
        if num_completions > self.num_completions:
            raise SeedtuneError(f"{num_completions} completions were generated; the budget is {self.num_completions}.")
        if self._started is None:
            raise SeedtuneError("call start() before training begins.")
        seconds = time.perf_counter() - self._started - self._paused
        stopped = time.perf_counter()
        target = self.folder / f"at-{num_completions}"
        target.mkdir(parents=True)
        save(target)
        line = {"num_completions": num_completions, "tokens": tokens, "seconds": seconds, "model": target.name}
        with (self.folder / "checkpoints.jsonl").open("a") as f:
            f.write(json.dumps(line) + "\n")
        while self._done < self.evaluations and self._is_due(num_completions):
            self._done += 1
        self._paused += time.perf_counter() - stopped
