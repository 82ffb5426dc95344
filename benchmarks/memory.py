"""Peak memory of a run, its scoring process included, over that of loading the float32 model: memory_over_fp32 for the
full-rank recipe, memory_over_fp32_lowrank for the demo's.

Each is measured in a process of its own: the peak resident set that the kernel keeps (VmHWM), plus, for its children,
the largest sum of resident sets of twenty samples per second. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, report

LOAD = """
import torch
from transformers import AutoModelForCausalLM
from seedtune.engines.loading import embedded_model
AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32)
"""
RUN = """
import sys
from seedtune.cli.main import main
sys.exit(main(["train", "--config", {recipe!r}, "--max_steps", "2", "--eval_steps", "1", "--save_steps", "1",
               "--output_dir", {folder!r}]))
"""


def megabytes(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> list[int]:
    """Descendants that have become programs of their own (a fork before that shares its parent's memory)."""
    mine = Path(f"/proc/{pid}/cmdline").read_bytes()
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            if Path(f"/proc/{child}/cmdline").read_bytes() != mine:
                found += [child, *children(child)]
    return found


def peak_megabytes(code: str) -> float:
    """The peak of a Python program and its children."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    own = beside = 0.0
    while process.poll() is None:
        try:
            own = max(own, megabytes(process.pid, "VmHWM"))
            beside = max(beside, sum(megabytes(child, "VmRSS") for child in children(process.pid)))
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the measured program failed with exit code {process.returncode}")
    return own + beside


if __name__ == "__main__":
    args = arguments(__doc__)
    results = {"load_fp32_megabytes": peak_megabytes(LOAD)}
    for name, recipe in (("", "conciseness-smollm2-fullrank"), ("_lowrank", "conciseness-smollm2")):
        with tempfile.TemporaryDirectory() as folder:
            peak = peak_megabytes(RUN.format(recipe=f"recipes/{recipe}.yaml", folder=f"{folder}/run"))
        results[f"run_megabytes{name}"] = peak
        results[f"memory_over_fp32{name}"] = peak / results["load_fp32_megabytes"]
    report(results, args.json)
