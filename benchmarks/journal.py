"""What a journal costs and what it saves, on six iterations of the demo's run; and what its evaluations cost.

* replay_over_training: rebuilding the weights from the journal, over training, seconds an iteration.
* journal_over_iteration: digest, journal line and fsync, over an iteration.
* patch_bytes, patch_over_safetensors: the fine-tune as a file, over the checkpoint that it stands for.
* evaluation_over_run: evaluations (rewards, KL, distance, probe), over all that the run does.
* replay_memory_over_fp32: peak memory of `seedtune replay`, over that of loading the model in float32.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from common import arguments, median_seconds, report
from memory import LOAD, peak_megabytes
from seedtune.cli.main import main as seedtune
from seedtune.journal.store import Journal
from seedtune.training.replay import load, rebuild

RECIPE = "benchmarks/data/conciseness.yaml"
REPLAY = "import sys; from seedtune.cli.main import main; sys.exit(main(['replay', {run!r}, '--out', {out!r}]))"


def seconds(run: Path) -> tuple[list[float], list[float]]:
    """Of each iteration, and of each evaluation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spent = [(sum(v for k, v in at.items() if k.startswith("time/")), "reward" in at) for at in lines]
    return [s for s, iteration in spent if iteration], [s for s, iteration in spent if not iteration]


if __name__ == "__main__":
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        code = seedtune(["train", "--config", RECIPE, "--output_dir", str(run), "--max_steps", "6",
                         "--stop_at", "eval/answered < 0"])  # fmt: skip
        if code:
            sys.exit(code)
        iterations, evaluations = seconds(run)
        iteration = statistics.median(iterations[1:])
        patch, ends = load(run), [0.0]
        engine = rebuild([patch], on_iteration=lambda done, count: ends.append(time.perf_counter()))
        replayed = statistics.median(b - a for a, b in pairwise(ends[1:]))
        journal, _ = Journal.read(run)
        cost = median_seconds(engine.digest, 9) + median_seconds(lambda: journal.append(journal.iterations[-1]), 9)
        size, whole = len(patch.to_bytes()), (run / "checkpoint-6" / "model.safetensors").stat().st_size
        again = Path(folder) / "again"
        del engine
        (run / "journal.jsonl").write_text("".join((run / "journal.jsonl").read_text().splitlines(True)[:7]))
        peak = peak_megabytes(REPLAY.format(run=str(run), out=str(again)))
        results = {
            "iteration_seconds": iteration,
            "replay_over_training": replayed / iteration,
            "journal_over_iteration": cost / iteration,
            "evaluation_over_run": sum(evaluations) / sum([*iterations, *evaluations]),
            "patch_bytes": size,
            "patch_over_safetensors": size / whole,
            "replay_memory_over_fp32": peak / peak_megabytes(LOAD),
        }
    report(results, args.json)
