"""What `ESTrainer.train` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

_NO_LOSS = (
    "ES has no loss, so this is not transformers' TrainOutput (global_step, training_loss, metrics). The run is done "
    "and saved in output_dir: take global_step and metrics by name; of evaluations, metrics has eval/reward."
)


@dataclass(frozen=True)
class TrainResult:
    """What `train` returns: iterations done, the last evaluation, why it ended, whether the user ended it, and the
    iteration after which the center was best (0: the base model; None: it was never evaluated).

    `global_step` and `metrics` are as in transformers' `TrainOutput`, which also has a loss and is a tuple: what needs
    these raises AttributeError or TypeError, and says so.
    """

    global_step: int
    metrics: dict[str, float]
    why: str
    interrupted: bool
    best_step: int | None = None

    def __getattr__(self, name: str) -> NoReturn:
        missing = f"'TrainResult' object has no attribute {name!r}"
        raise AttributeError(f"{missing}: {_NO_LOSS}" if name == "training_loss" else missing)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(f"a TrainResult cannot be unpacked: {_NO_LOSS}")

    def __getitem__(self, index: Any) -> NoReturn:
        raise TypeError(f"a TrainResult has no item {index!r}: {_NO_LOSS}")
