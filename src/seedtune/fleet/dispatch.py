"""Which worker answers which chunk. Whoever is free takes the next; a chunk whose worker is lost goes to another; when
nothing is left to hand out, the slowest chunk is asked for a second time and the first answer counts.

What a chunk yields does not depend on who answers it, so none of this changes a result. Knows threads and futures only.
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

#: A chunk is asked for again when it has taken this many times the median.
_SLOW = 1.5
_LOOK_EVERY = 0.2
#: So many workers may be lost to one chunk of a run.
_LOSSES = 4


class Worker(Protocol):
    """Answers one piece of work at a time."""

    @property
    def name(self) -> str: ...

    def answer(self, work: Any) -> Future[Any]:
        """Its future raises `WorkerLost` when the worker is gone."""
        ...


class WorkerLost(Exception):
    """The worker died, or cannot be reached. Its chunks go to others."""


@dataclass
class Tally:
    """Of one `run`: useful seconds by worker, whose answer to each chunk counted, wall-clock seconds, chunks asked for
    twice, and numbers of chunks that were left out.
    """

    busy: dict[str, float] = field(default_factory=dict)
    by: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    twice: int = 0
    left: set[int] = field(default_factory=set)

    @property
    def utilisation(self) -> float:
        """The share of the workers' time in which they made answers that counted."""
        return sum(self.busy.values()) / (len(self.busy) * self.seconds) if self.busy and self.seconds else 0.0


@dataclass
class _Errand:
    """A worker on a chunk of a run."""

    run: int
    number: int
    started: float


class Dispatcher:
    """Workers come and go while runs go on. `timeout`: seconds after which a worker that has not answered counts as
    lost, and for which a run waits for a worker when there is none.
    """

    def __init__(self, timeout: float, on_lost: Callable[[Worker, str], None] = lambda worker, why: None) -> None:
        self.timeout, self.on_lost = timeout, on_lost
        self._workers: dict[str, Worker] = {}
        self._out: dict[str, _Errand] = {}
        self._idle: deque[str] = deque()
        self._events: SimpleQueue[tuple[Worker, Future[Any] | None]] = SimpleQueue()
        self._runs = 0
        self._running = False

    @property
    def workers(self) -> list[Worker]:
        return list(self._workers.values())

    def join(self, worker: Worker) -> None:
        """A worker is ready; may be called during a run."""
        self._workers[worker.name] = worker
        self._events.put((worker, None))

    def settle(self) -> None:
        """Between runs: take in those who joined, or came back late. A run does so itself, and nobody beside it may:
        what came back would be lost.
        """
        while not self._running:
            try:
                self._take(*self._events.get_nowait())
            except Empty:
                return

    def drop(self, worker: Worker, why: str) -> None:
        """Count a worker as lost."""
        if self._workers.pop(worker.name, None) is None:
            return
        self._out.pop(worker.name, None)
        if worker.name in self._idle:
            self._idle.remove(worker.name)
        self.on_lost(worker, why)

    def busy(self, worker: Worker) -> bool:
        """Whether it is on an errand, of this run or of one before."""
        return worker.name in self._out

    def clear(self) -> None:
        """Forget all workers."""
        self._events = SimpleQueue()
        self._workers, self._out = {}, {}
        self._idle.clear()

    def run(
        self,
        works: Sequence[Any],
        on_answer: Callable[[int, Any], None],
        tick: Callable[[], None] = lambda: None,
        may_leave: Callable[[set[int]], bool] = lambda left: False,
    ) -> Tally:
        """Have every piece of work answered once; `on_answer` gets its number and the answer, in the order in which
        they come; `tick` is called now and then, and may raise to end the run. When all that is out is late,
        `may_leave` is asked whether the run may end without it.

        Raises FleetError when there is no worker for `timeout` seconds, and what a worker raises but for `WorkerLost`.
        """
        self._runs += 1
        self._running = True
        try:
            return self._run(works, on_answer, tick, may_leave)
        finally:
            self._running = False

    def _run(
        self,
        works: Sequence[Any],
        on_answer: Callable[[int, Any], None],
        tick: Callable[[], None],
        may_leave: Callable[[set[int]], bool],
    ) -> Tally:
        tally, began, alone = Tally(), time.monotonic(), time.monotonic()
        todo, answered, times = deque(range(len(works))), set[int](), list[float]()
        losses = Counter[int]()
        while len(answered) < len(works):
            if not todo and self._all_late(answered, times):
                left = set(range(len(works))) - answered
                if may_leave(left):
                    tally.left = left
                    break
            self._hand_out(works, todo, answered, times, tally)
            try:
                worker, future = self._events.get(timeout=_LOOK_EVERY)
            except Empty:
                tick()
                overdue = self._overdue(answered)
                todo.extend(overdue)
                _check_losses(losses, overdue, "it did not answer in time")
                if self._workers:
                    alone = time.monotonic()
                elif time.monotonic() - alone > self.timeout:
                    raise FleetError(
                        f"no replica was there for {self.timeout:.0f} s. The iterations before are safe: see the "
                        "notes above for why they left, then use --resume."
                    ) from None
                continue
            tick()
            errand = self._take(worker, future)
            if errand is None or errand.run != self._runs or future is None:
                continue
            try:
                answer = future.result()
            except (WorkerLost, CancelledError) as e:
                self.drop(worker, str(e))
                if errand.number not in answered:
                    todo.appendleft(errand.number)
                    _check_losses(losses, [errand.number], str(e))
                continue
            if errand.number in answered:
                continue
            answered.add(errand.number)
            times.append(time.monotonic() - errand.started)
            tally.by[errand.number] = worker.name
            tally.busy[worker.name] = tally.busy.get(worker.name, 0.0) + times[-1]
            on_answer(errand.number, answer)
        tally.seconds = time.monotonic() - began
        for name in self._workers:
            tally.busy.setdefault(name, 0.0)
        return tally

    def _take(self, worker: Worker, future: Future[Any] | None) -> _Errand | None:
        """A worker that joined, or that is free again; the errand it is back from."""
        if future is None:
            if worker.name in self._workers:
                self._idle.append(worker.name)
            return None
        errand = self._out.pop(worker.name, None)
        if errand is not None and worker.name in self._workers:
            self._idle.append(worker.name)
        return errand

    def _hand_out(
        self, works: Sequence[Any], todo: deque[int], answered: set[int], times: Sequence[float], tally: Tally
    ) -> None:
        while self._idle:
            number = todo.popleft() if todo else self._slowest(answered, times)
            if number is None:
                return
            if number in answered:
                continue
            tally.twice += any(e.run == self._runs and e.number == number for e in self._out.values())
            name = self._idle.popleft()
            worker = self._workers[name]
            self._out[name] = _Errand(self._runs, number, time.monotonic())
            worker.answer(works[number]).add_done_callback(partial(self._back, worker))

    def _back(self, worker: Worker, future: Future[Any]) -> None:
        self._events.put((worker, future))

    def _slowest(self, answered: set[int], times: Sequence[float]) -> int | None:
        """The chunk that has been out longest with one worker only, when that is long."""
        out = self._errands(answered)
        asked = Counter(e.number for e in out)
        alone = [e for e in out if asked[e.number] == 1]
        if not alone or not times:
            return None
        first = min(alone, key=lambda e: e.started)
        return first.number if self._is_late(first, times) else None

    def _all_late(self, answered: set[int], times: Sequence[float]) -> bool:
        out = self._errands(answered)
        return bool(times) and bool(out) and all(self._is_late(e, times) for e in out)

    def _errands(self, answered: set[int]) -> list[_Errand]:
        """Those of this run that are still of use."""
        return [e for e in self._out.values() if e.run == self._runs and e.number not in answered]

    @staticmethod
    def _is_late(errand: _Errand, times: Sequence[float]) -> bool:
        return time.monotonic() - errand.started > _SLOW * statistics.median(times[-64:])

    def _overdue(self, answered: set[int]) -> list[int]:
        """Drop workers that have not answered for too long; their chunks."""
        now, found = time.monotonic(), []
        for name, errand in list(self._out.items()):
            if now - errand.started > self.timeout:
                self.drop(self._workers[name], f"no answer for {self.timeout:.0f} s")
                if errand.run == self._runs and errand.number not in answered:
                    found.append(errand.number)
        return found


def _check_losses(losses: Counter[int], lost: Sequence[int], why: str) -> None:
    """Raise FleetError for a chunk that has cost too many workers: the next one would be lost as well."""
    losses.update(lost)
    for number in lost:
        if losses[number] >= _LOSSES:
            raise FleetError(
                f"chunk {number} cost {_LOSSES} replicas, the last one because: {why}. If memory runs out or it takes "
                "longer than replica_timeout (rewards included, where replicas score), set chunk_size lower. The "
                "iterations before are safe; use --resume."
            )
