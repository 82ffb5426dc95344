"""The sandbox: how long a short program takes, how many a minute two cores run, and what a verdict costs.

python benchmarks/sandbox.py
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from seedtune import sandbox
from seedtune.tasks.code.sources import split
from seedtune.tasks.code.verdict import check

PROGRAM = "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(int(input())))"
TESTS = split([f"assert f({n}) == {value}" for n, value in enumerate((0, 1, 1, 2, 3, 5, 8))])


def milliseconds(act: Callable[[], object], repeats: int = 40) -> str:
    """The median of so many, one after another, and the slowest."""
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        act()
        taken.append(1000 * (time.perf_counter() - begun))
    return f"{statistics.median(taken):.0f} ms (slowest {max(taken):.0f})"


def per_minute(act: Callable[[], object], count: int = 300, threads: int = 2) -> str:
    """How many in a minute, so many at a time."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(act) for _ in range(count)]:
            done.result()
    return f"{60 * count / (time.perf_counter() - begun):,.0f} per minute, {threads} at a time"


def main() -> None:
    begun = time.perf_counter()
    sandbox.check()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"the check, once per process: {time.perf_counter() - begun:.2f} s")

    def program() -> None:
        assert sandbox.run(PROGRAM, "10").stdout == "55\n"

    def verdict() -> None:
        assert check(PROGRAM.rpartition("\n")[0], TESTS).all

    alone = [sys.executable, "-I", "-c", PROGRAM]
    print(f"python alone: {milliseconds(lambda: subprocess.run(alone, input=b'10', stdout=subprocess.PIPE))}")
    print(f"a program in the sandbox: {milliseconds(program)}; {per_minute(program)}")
    print(f"a verdict on seven asserts: {milliseconds(verdict)}; {per_minute(verdict)}")


if __name__ == "__main__":
    main()
