"""Which worker decodes which chunk. A free worker takes the next one; the chunk of a lost worker goes to another; when
nothing is left to hand out, the slowest chunk is given to a second worker and the first result counts (speculative
execution).

What a chunk yields does not depend on the worker, so none of this changes a result. Knows threads and futures only.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from ..errors import FleetError

#: A chunk is given to a second worker when it has taken this many times the median.
_SLOW = 1.5
_LOOK_EVERY = 0.2
#: So many workers may be lost to one chunk of a run.
_LOSSES = 4


class Worker(Protocol):
    """Works on one task at a time."""

    @property
    def name(self) -> str: ...

    def execute(self, task: Any) -> Future[Any]:
        """Its future raises `WorkerLost` when the worker is gone."""


class WorkerLost(Exception):
    """The worker died, or cannot be reached. Its chunks go to others."""


@dataclass
class DispatchStats:
    """Of one `run`: useful seconds by worker, whose result of each chunk counted, seconds per chunk in the order of
    completion, wall-clock seconds, chunks that were given to a second worker, and numbers of chunks that were dropped.
    """

    busy: dict[str, float] = field(default_factory=dict)
    by: dict[int, str] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    seconds: float = 0.0
    num_speculative: int = 0
    dropped: set[int] = field(default_factory=set)

    @property
    def utilization(self) -> float:
        """The share of the workers' time in which they made results that counted."""
        return sum(self.busy.values()) / (len(self.busy) * self.seconds) if self.busy and self.seconds else 0.0


@dataclass
class InFlight:
    """A worker on a chunk of a run."""

    run: int
    number: int
    started: float


class Dispatcher:
    """Workers come and go while runs go on. `timeout`: seconds after which a worker that has not finished counts as
    lost, and for which a run waits for a worker when there is none.
    """

    def __init__(self, timeout: float, on_lost: Callable[[Worker, str], None] = lambda worker, why: None) -> None:
        self.timeout, self.on_lost = timeout, on_lost
        self._workers: dict[str, Worker] = {}
        self._in_flight: dict[str, InFlight] = {}
        self._idle: deque[str] = deque()
        self._events: SimpleQueue[tuple[Worker, Future[Any] | None]] = SimpleQueue()
        self._runs, self._running = 0, False
        self._stats, self._todo, self._losses = DispatchStats(), deque[int](), Counter[int]()  # of this run

    @property
    def workers(self) -> list[Worker]:
        """Those that are ready, busy ones among them."""
        return list(self._workers.values())

    def join(self, worker: Worker) -> None:
        """A worker is ready; may be called during a run."""
        self._workers[worker.name] = worker
        self._events.put((worker, None))

    def drain_events(self) -> None:
        """Between runs: take in workers that joined or finished late. A run does so itself; nothing else may meanwhile:
        the result would be lost.
        """
        while not self._running and not self._events.empty():
            self._take(*self._events.get())

    def drop(self, worker: Worker, why: str) -> None:
        """Count a worker as lost."""
        if self._workers.pop(worker.name, None) is None:
            return
        self._in_flight.pop(worker.name, None)
        if worker.name in self._idle:
            self._idle.remove(worker.name)
        self.on_lost(worker, why)

    def busy(self, worker: Worker) -> bool:
        """Whether it works on a task, of this run or of one before."""
        return worker.name in self._in_flight

    def clear(self) -> None:
        """Forget all workers."""
        self._events = SimpleQueue()
        self._workers, self._in_flight = {}, {}
        self._idle.clear()

    def run(
        self,
        tasks: Sequence[Any],
        on_result: Callable[[int, Any], None],
        tick: Callable[[], None] = lambda: None,
        may_drop: Callable[[set[int]], bool] = lambda dropped: False,
    ) -> DispatchStats:
        """Have every task done once; `on_result` gets its number and the result, in the order of completion;
        `tick` is called now and then, and may raise to end the run. When all that is out is late,
        `may_drop` decides whether the run may end without them.

        Raises FleetError when there is no worker for `timeout` seconds, and what a worker raises but for `WorkerLost`.
        """
        self._runs, self._running = self._runs + 1, True
        self._stats, self._todo, self._losses = DispatchStats(), deque(range(len(tasks))), Counter()
        stats, began, alone = self._stats, time.monotonic(), time.monotonic()
        try:
            while len(stats.by) < len(tasks):
                if not self._todo and (out := self._useful()) and all(map(self._is_late, out)):
                    rest = set(range(len(tasks))) - set(stats.by)
                    if may_drop(rest):
                        stats.dropped = rest
                        break
                self._hand_out(tasks)
                try:
                    worker, future = self._events.get(timeout=_LOOK_EVERY)
                except Empty:
                    tick()
                    for name, flight in list(self._in_flight.items()):
                        if time.monotonic() - flight.started > self.timeout:
                            self._lose(self._workers[name], flight, f"no result for {self.timeout:.0f} s")
                    if self._workers:
                        alone = time.monotonic()
                    elif time.monotonic() - alone > self.timeout:
                        raise FleetError(
                            f"no replica was there for {self.timeout:.0f} s. The iterations before are safe: see the "
                            "notes above for why they left, then use --resume."
                        ) from None
                    continue
                tick()
                done = self._take(worker, future)
                if future is None or done is None or done.run != self._runs:
                    continue
                try:
                    result = future.result()
                except (WorkerLost, CancelledError) as e:
                    self._lose(worker, done, str(e))
                    continue
                if done.number not in stats.by:
                    stats.times.append(time.monotonic() - done.started)
                    stats.by[done.number] = worker.name
                    stats.busy[worker.name] = stats.busy.get(worker.name, 0.0) + stats.times[-1]
                    on_result(done.number, result)
        finally:
            self._running = False
        stats.seconds = time.monotonic() - began
        for name in self._workers:
            stats.busy.setdefault(name, 0.0)
        return stats

    def _take(self, worker: Worker, future: Future[Any] | None) -> InFlight | None:
        """A worker that joined, or that is free again; the task that it was on."""
        flight = self._in_flight.pop(worker.name, None) if future else None
        if worker.name in self._workers and (flight or future is None):
            self._idle.append(worker.name)
        return flight

    def _hand_out(self, tasks: Sequence[Any]) -> None:
        while self._idle:
            number = self._todo.popleft() if self._todo else self._slowest()
            if number is None:
                return
            if number in self._stats.by:
                continue
            self._stats.num_speculative += any(flight.number == number for flight in self._useful())
            name = self._idle.popleft()
            worker = self._workers[name]
            self._in_flight[name] = InFlight(self._runs, number, time.monotonic())
            worker.execute(tasks[number]).add_done_callback(partial(self._back, worker))

    def _back(self, worker: Worker, future: Future[Any]) -> None:
        self._events.put((worker, future))

    def _lose(self, worker: Worker, flight: InFlight, why: str) -> None:
        """Drop a worker; its chunk goes to others. Raises FleetError for a chunk that has cost too many workers: the
        next one would be lost as well.
        """
        self.drop(worker, why)
        number = flight.number
        if flight.run != self._runs or number in self._stats.by:
            return
        self._todo.appendleft(number)
        self._losses[number] += 1
        if self._losses[number] >= _LOSSES:
            raise FleetError(
                f"chunk {number} cost {_LOSSES} replicas, the last one because: {why}. If memory runs out or it takes "
                "longer than replica_timeout (rewards included, where replicas score), set chunk_size lower. The "
                "iterations before are safe; use --resume."
            )

    def _slowest(self) -> int | None:
        """The chunk that has been in flight longest with one worker only, when that is long."""
        out = self._useful()
        workers = Counter(flight.number for flight in out)
        alone = [flight for flight in out if workers[flight.number] == 1]
        first = min(alone, key=lambda flight: flight.started, default=None)
        return first.number if first and self._is_late(first) else None

    def _useful(self) -> list[InFlight]:
        """Those of this run that are still of use."""
        return [e for e in self._in_flight.values() if e.run == self._runs and e.number not in self._stats.by]

    def _is_late(self, flight: InFlight) -> bool:
        times = self._stats.times[-64:]
        return bool(times) and time.monotonic() - flight.started > _SLOW * statistics.median(times)
