"""Seedtune: fine-tune large language models by Evolution Strategies. Forward passes only; a run is its journal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .errors import SeedtuneError

if TYPE_CHECKING:
    from .config import ESConfig
    from .rewards import reads_outputs
    from .training import ESTrainer

    __version__: str

# Threads of OpenMP spin before they sleep, libgomp's for as long as 15 ms: two runs on the same cores slow each other
# tenfold. Read when torch is loaded, so set before; what the user has set stays.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "2000"
if not os.environ.keys() & {"KMP_BLOCKTIME", "OMP_WAIT_POLICY"}:  # milliseconds; Intel's and LLVM's
    os.environ["KMP_BLOCKTIME"] = "1"

__all__ = ["ESConfig", "ESTrainer", "SeedtuneError", "__version__", "reads_outputs"]
_ROOMS = {"ESConfig": "config", "ESTrainer": "training", "reads_outputs": "rewards"}


def __getattr__(name: str) -> Any:
    """Import on first use, so that a scoring process that needs only a reward function does not load torch."""
    if name in _ROOMS:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    if name == "__version__":  # as it was installed; scripts/version.py says what that is
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version(__name__)
        except PackageNotFoundError:  # a folder on the path, never installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
