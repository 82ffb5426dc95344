"""The training loop, the run on disk, and what settings become: `trainer`, `run`, `factory`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import TrainResult
    from .trainer import ESTrainer

__all__ = ["ESTrainer", "TrainResult"]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line reads `recipe` without loading torch."""
    if name in __all__:
        from . import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
