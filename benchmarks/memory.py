"""Peak memory of a run, reward process included, over that of loading the float32 model: memory_over_fp32.

Each is measured in a process of its own, as the operating system accounts it (maximum resident set).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

from common import arguments, report

LOAD = """
import torch
from transformers import AutoModelForCausalLM
from seedtune.engines.models import embedded_model
AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32)
"""
RUN = """
import sys
from seedtune.cli.main import main
sys.exit(main(["train", "--config", "recipes/conciseness-smollm2.yaml", "--max_steps", "2", "--eval_steps", "1",
               "--save_steps", "1", "--output_dir", {folder!r}]))
"""
MEASURE = """
import json, resource
peak = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps(peak))
"""


def peak_megabytes(code: str, ending: str = MEASURE) -> float:
    """Of the process, and of the largest of its children (there is one reward process), added up."""
    wrapped = f"import atexit\natexit.register(lambda: exec({ending!r}))\n{code}"
    done = subprocess.run([sys.executable, "-c", wrapped], capture_output=True, text=True, check=True)
    return float(sum(json.loads(done.stdout.strip().splitlines()[-1])))


if __name__ == "__main__":
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        load = peak_megabytes(LOAD)
        run = peak_megabytes(RUN.format(folder=f"{folder}/run"))
    report({"load_fp32_megabytes": load, "run_megabytes": run, "memory_over_fp32": run / load}, args.json)
