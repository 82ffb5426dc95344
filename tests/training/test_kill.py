"""Kill -9 at twenty moments: after resuming, the run is the one that was never disturbed, byte for byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from killed import PLACES
from runs import without_times
from seedtune.utils.files import read_lines

MOST = {"generate": 100, "update": 5, "journal": 6, "metrics": 9, "checkpoint": 2}


def moments():
    """Twenty, four in each place, drawn by a seed."""
    draw = random.Random(2026)
    return [f"{place}:{draw.randrange(MOST[place] + 1)}" for place in PLACES for _ in range(4)]


def run(*jobs):
    """Exit codes [job][moment] of runs that are killed at moments: jobs are (folder, moment, moment...)."""
    here = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(here / "killed.py"), *" / ".join(" ".join(map(str, job)) for job in jobs).split()],
        cwd=here, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [[int(code) for code in line.split()] for line in done.stdout.splitlines()]


def left(folder):
    """What a run leaves behind; metrics without timings."""
    return (
        (folder / "journal.jsonl").read_bytes(),
        without_times(read_lines(folder / "metrics.jsonl")),
        sorted(p.name for p in folder.glob("*checkpoint*")),
        (folder / "checkpoint-6" / "model.safetensors").read_bytes(),
        (folder / "checkpoint-6" / "state.safetensors").read_bytes(),
    )


def test_killed_at_twenty_moments_a_run_resumes_to_the_same_bytes(tmp_path):
    jobs = [(tmp_path / str(n), moment, "-") for n, moment in enumerate(moments())]
    again = (tmp_path / "again", "journal:1", "generate:9", "update:0", "checkpoint:0", "metrics:1", "-")
    low = [(tmp_path / f"low-{place}", f"{place}:1", "-") for place in ("generate", "update", "checkpoint")]
    codes = run((tmp_path / "whole", "-"), *jobs, again, (tmp_path / "low-whole", "-"), *low)
    assert codes == [[0], *([-9, 0] for _ in jobs), [-9, -9, -9, -9, -9, 0], [0], *([-9, 0] for _ in low)]
    whole, low_whole = left(tmp_path / "whole"), left(tmp_path / "low-whole")
    assert [job for job in [*jobs, again] if left(job[0]) != whole] == []
    assert [job for job in low if left(job[0]) != low_whole] == []
