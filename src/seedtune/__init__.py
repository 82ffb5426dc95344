"""Seedtune: fine-tune large language models by Evolution Strategies. Forward passes only; a run is its journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import SeedtuneError

if TYPE_CHECKING:
    from .config import ESConfig
    from .trainer import ESTrainer

__version__ = "0.1.0"
__all__ = ["ESConfig", "ESTrainer", "SeedtuneError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that a scoring process that needs only a reward function does not load torch."""
    if name == "ESConfig":
        from .config import ESConfig

        return ESConfig
    if name == "ESTrainer":
        from .trainer import ESTrainer

        return ESTrainer
    raise AttributeError(f"module 'seedtune' has no attribute {name!r}")
