"""What a journal costs and what it saves, on the demo's run (four iterations of it).

* replay_over_training: rebuilding the weights from the journal, over training, seconds an iteration.
* journal_over_iteration: digest, journal line and fsync, over an iteration.
* patch_bytes, patch_over_safetensors: the fine-tune as a file, over the checkpoint that it stands for.
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
from seedtune.replay import load, rebuild

RECIPE = "recipes/conciseness-smollm2.yaml"
REPLAY = "import sys; from seedtune.cli.main import main; sys.exit(main(['replay', {run!r}, '--out', {out!r}]))"


def training_seconds(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spent = [sum(v for k, v in line.items() if k.startswith("time/")) for line in lines if "reward" in line]
    return statistics.median(spent[1:])


if __name__ == "__main__":
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        code = seedtune(["train", "--config", RECIPE, "--output_dir", str(run), "--max_steps", "4", "--eval_steps", "0",
                         "--stop_at", "eval/answered < 0"])  # fmt: skip
        if code:
            sys.exit(code)
        iteration = training_seconds(run)
        patch, ends = load(run), [0.0]
        engine = rebuild([patch], on_iteration=lambda done, count: ends.append(time.perf_counter()))
        replayed = statistics.median(b - a for a, b in pairwise(ends[1:]))
        journal, _ = Journal.read(run)
        cost = median_seconds(engine.digest, 9) + median_seconds(lambda: journal.append(journal.iterations[-1]), 9)
        size, whole = len(patch.to_bytes()), (run / "checkpoint-4" / "model.safetensors").stat().st_size
        again = Path(folder) / "again"
        del engine
        (run / "journal.jsonl").write_text("".join((run / "journal.jsonl").read_text().splitlines(True)[:5]))
        peak = peak_megabytes(REPLAY.format(run=str(run), out=str(again)))
        results = {
            "iteration_seconds": iteration,
            "replay_over_training": replayed / iteration,
            "journal_over_iteration": cost / iteration,
            "patch_bytes": size,
            "patch_over_safetensors": size / whole,
            "replay_memory_over_fp32": peak / peak_megabytes(LOAD),
        }
    report(results, args.json)
