"""Scheduling: simulated replicas (an engine that sleeps) of speeds spread over a factor of 4, 16 chunks per replica.

* utilization_N: of N replicas, the share of their time spent on chunks whose results were used (the second result of a
  chunk counts as waste).
* driver_ms_a_chunk_N: CPU time per chunk of the thread that assigns chunks.

Writes benchmarks/fleet.md and benchmarks/fleet.png. Without Ray: this is `distributed/dispatcher.py` alone.
"""

from __future__ import annotations

import heapq
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from common import arguments, report
from seedtune.distributed.dispatcher import Dispatcher

HERE, CHUNKS, SECONDS = Path(__file__).parent, 16, 0.8
SIZES = (16, 32, 64, 128, 256)


class Clock(threading.Thread):
    """One thread that ends everybody's sleep."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.changed, self.sleeping, self.count = threading.Condition(), [], 0
        self.start()

    def after(self, seconds: float, future: Future[Any]) -> None:
        with self.changed:
            self.count += 1
            heapq.heappush(self.sleeping, (time.monotonic() + seconds, self.count, future))
            self.changed.notify()

    def run(self) -> None:
        while True:
            with self.changed:
                while not self.sleeping or self.sleeping[0][0] > time.monotonic():
                    until = self.sleeping[0][0] - time.monotonic() if self.sleeping else None
                    self.changed.wait(until)
                future = heapq.heappop(self.sleeping)[2]
            future.set_result(None)


class Sleeper:
    """A replica that takes `seconds` a chunk."""

    def __init__(self, name: str, seconds: float, clock: Clock) -> None:
        self.name, self.seconds, self.clock = name, seconds, clock

    def execute(self, work: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.clock.after(self.seconds, future)
        return future


def measure(replicas: int) -> tuple[float, float]:
    clock, dispatcher = Clock(), Dispatcher(timeout=60.0)
    for n in range(replicas):
        dispatcher.join(Sleeper(str(n), SECONDS / 4 ** (n / (replicas - 1)), clock))
    started = time.thread_time()
    tally = dispatcher.run(range(CHUNKS * replicas), lambda number, answer: None)
    return tally.utilization, (time.thread_time() - started) * 1000 / (CHUNKS * replicas)


if __name__ == "__main__":
    args = arguments(__doc__)
    found = {n: measure(n) for n in SIZES}
    results = {f"utilization_{n}": used for n, (used, _) in found.items()}
    results |= {f"driver_ms_a_chunk_{n}": spent for n, (_, spent) in found.items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, column, title in zip(axes, (0, 1), ("utilization", "driver, ms of CPU per chunk"), strict=True):
        axis.plot(SIZES, [found[n][column] for n in SIZES], marker="o", color="#0f9d8a")
        axis.set(xlabel="replicas, fourfold spread of speed", title=title, xscale="log", xticks=SIZES, ylim=(0, None))
        axis.set_xticks(SIZES, [str(n) for n in SIZES], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(HERE / "fleet.png", dpi=110)
    page = HERE / "fleet.md"
    rows = [f"| {n} | {CHUNKS * n} | {used:.3f} | {spent:.3f} |" for n, (used, spent) in found.items()]
    table = ["| replicas | chunks | utilization | driver, ms of CPU per chunk |", "|---|---|---|---|", *rows]
    head, _, tail = page.read_text().partition("<!-- table -->")
    page.write_text("\n".join([f"{head}<!-- table -->", "", *table, "", "![Growth](fleet.png)", ""])
                    + "\n" + tail.partition("<!-- end -->")[1] + tail.partition("<!-- end -->")[2])  # fmt: skip
    report(results, args.json)
