"""What the benchmarks share: medians, the machine's name, and writing results."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seedtune.utils.environment import environment


def median_seconds(work: Callable[[], Any], rounds: int) -> float:
    """The median over `rounds`, after one round that does not count."""
    work()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", metavar="FILE", help="also write the results to FILE")
    return parser.parse_args()


def report(results: dict[str, float], file: str | None) -> None:
    """Print every number; with --json, write them with the machine that they were measured on."""
    for name, value in results.items():
        print(f"{name:32} {value:.4g}")
    if file:
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor": platform.processor() or platform.machine(), **environment()}
        path.write_text(json.dumps({"results": results, "machine": machine}, indent=2) + "\n")
