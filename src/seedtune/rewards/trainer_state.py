"""`trainer_state`, as reward functions get it: the fields of transformers' `TrainerState`, without transformers, which
a scoring process does not load.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import Any

import cloudpickle


@dataclass
class TrainerState:
    """Where the run is: what transformers' `TrainerState` has, under its names, with its defaults. One step is one
    iteration; tokens are those of prompts and completions.
    """

    epoch: float = 0
    global_step: int = 0
    max_steps: int = 0
    logging_steps: int = 500
    eval_steps: int = 500
    save_steps: int = 500
    train_batch_size: int | None = None
    num_train_epochs: int = 0
    num_input_tokens_seen: int = 0
    total_flos: float = 0
    log_history: list[dict[str, Any]] = field(default_factory=list)
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: dict[str, Any] | None = None
    stateful_callbacks: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainerState:
        """From the values of some of its fields; a history of its own, so that a function may change it."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**{**known, "log_history": [*known.get("log_history", ())]})


class Snapshot(dict[str, Any]):
    """The fields of the state during one rollout. It is pickled once, however many batches it goes with, and unpickled
    once per process: the history of a long run is no small thing.
    """

    @cached_property
    def packed(self) -> bytes:
        return zlib.compress(cloudpickle.dumps(dict(self)), 1)

    def __reduce__(self) -> tuple[Callable[[bytes], Snapshot], tuple[bytes]]:
        return _unpacked, (self.packed,)


@lru_cache(maxsize=2)
def _unpacked(packed: bytes) -> Snapshot:
    """Of this run: never of a file."""
    snapshot = Snapshot(cloudpickle.loads(zlib.decompress(packed)))
    snapshot.packed = packed
    return snapshot
