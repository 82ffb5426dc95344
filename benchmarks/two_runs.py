"""Two runs on one machine, of as many threads each as it has cores, against one alone: seconds per iteration, the first
left out, of 8 members with 4 prompts.

* together_over_alone: the slower of two that run at once, over one alone.
* spinning_together_over_alone: the same with idle threads that spin as long as libgomp's do of themselves.
* alone_over_spinning: what a single run loses by threads that sleep soon: one alone, over one alone that spins.

Runs of both kinds take turns; medians over the turns (`--turns`). What else the machine does is part of all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import report

RECIPE, STEPS = "benchmarks/data/conciseness.yaml", 4
#: libgomp's own number of turns; without a policy of waiting it is not set to another.
SPINNING = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}


def start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "seedtune.cli.main", "train", "--config", RECIPE, "--output_dir", str(folder)]
    command += ["--max_steps", str(STEPS), "--eval_steps", "0", "--population_size", "8", "--drift_samples", "0"]
    command += ["--stop_at", "eval/answered < 0", "--load_best_model_at_end", "false", "--guard", "false"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "KMP_", "OMP_"))}
    return subprocess.Popen(command, env={**clean, **environment}, stdout=subprocess.DEVNULL)


def seconds(count: int, environment: dict[str, str]) -> float:
    """Per iteration of the slowest of so many runs at once."""
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / str(n) for n in range(count)]
        for run in [start(folder, environment) for folder in folders]:
            if run.wait():
                raise SystemExit(f"a run failed with exit code {run.returncode}")
        return max(map(_per_iteration, folders))


def _per_iteration(folder: Path) -> float:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    iterations = [line for line in lines if "reward" in line]
    return statistics.median(sum(v for k, v in line.items() if k.startswith("time/")) for line in iterations[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(args.turns):
        for name, environment in (("", {}), ("spinning_", SPINNING)):
            for count in (1, 2):
                found.setdefault(f"{name}seconds_{count}", []).append(seconds(count, environment))
                print(f"{name}seconds_{count}", found[f"{name}seconds_{count}"], file=sys.stderr, flush=True)
    results = {name: statistics.median(values) for name, values in found.items()}
    for name in ("", "spinning_"):
        results[f"{name}together_over_alone"] = results[f"{name}seconds_2"] / results[f"{name}seconds_1"]
    results["alone_over_spinning"] = results["seconds_1"] / results["spinning_seconds_1"]
    report(results, args.json)
