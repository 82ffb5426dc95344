"""Two Ray replicas of one thread each against one local replica of one thread: the demo's members, chunks of 32 rows.

* two_over_one: members per second of the fleet, over those of the one replica; medians over iterations but the first.
* bytes_sent, bytes_received: to and from the busier replica, an iteration, at most.
* bytes_over_limit: bytes sent, over 2 KB + 64 B a member + the text of the prompts that it was sent.
* same_journal: 1 when both wrote the same journal.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import arguments, report

RECIPE, STEPS, MEMBERS = "recipes/conciseness-smollm2.yaml", 4, 32
FLEET = ["--fleet", "ray", "--replicas", "2", "--replica_cpus", "1"]


def run(folder: Path, *flags: str) -> list[dict[str, float]]:
    """Metrics of the iterations of a run."""
    command = [sys.executable, "-m", "seedtune.cli.main", "train", "--config", RECIPE, "--output_dir", str(folder)]
    command += ["--max_steps", str(STEPS), "--eval_steps", "0", "--drift_samples", "0", "--threads", "1"]
    command += ["--chunk_size", "32", "--generation_batch_size", "32", "--stop_at", "eval/answered < 0", *flags]
    subprocess.run(command, check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "reward" in line]


def seconds(lines: list[dict[str, float]]) -> float:
    return statistics.median(sum(v for k, v in line.items() if k.startswith("time/")) for line in lines[1:])


if __name__ == "__main__":
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        one, two = run(Path(folder) / "one"), run(Path(folder) / "two", *FLEET)
        journals = [(Path(folder) / name / "journal.jsonl").read_bytes() for name in ("one", "two")]
    sent = max(line["fleet/bytes_sent"] for line in two)
    limit = 2000 + 64 * MEMBERS + 600 * 4  # four prompts, their template and tokens, at most 600 characters each
    results = {
        "two_over_one": seconds(one) / seconds(two),
        "members_per_second_one": MEMBERS / seconds(one),
        "bytes_sent": sent,
        "bytes_received": max(line["fleet/bytes_received"] for line in two),
        "bytes_over_limit": sent / limit,
        "same_journal": float(journals[0] == journals[1]),
    }
    report(results, args.json)
