"""Processes that run tools. A conversation stays in one of them, since its environment does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import count
from typing import Any

from loky import ProcessPoolExecutor

from ..errors import RewardError
from ..rewards.scorer import serve_the_run
from ..utils import processes
from ..utils.torch_settings import settings_kept
from . import session
from .results import Outcome, ToolResult
from .toolset import ToolSet

#: Pools of one process have numbers, as those that run tools in it share its sessions.
_POOLS = count()
#: Seconds that a process has beyond a tool's own limit, to say that it was late; then it is killed.
_GRACE = 30.0


class ToolPool:
    """Runs the tools of a `ToolSet` in `workers` processes (None: one; 0: in this process, at once and without limits).

    A tool that takes longer than `timeout` seconds fails, and the model is told; one that cannot be interrupted stops
    the run with a RewardError.
    """

    def __init__(self, tools: ToolSet, *, workers: int | None, timeout: float) -> None:
        self.tools, self.timeout = tools, timeout if workers != 0 else 0.0
        self._count = 1 if workers is None else workers
        self._pools: list[ProcessPoolExecutor] = []
        self._started = set[int]()
        self._number, self._keys = next(_POOLS), count()
        self._payload = tools.payload

    def start(self, name: str | None, columns: Mapping[str, Any], seed: int) -> tuple[int, Future[str | None]]:
        """Begin a conversation; its key, and what the model is told first."""
        key = next(self._keys)
        about = self._session(key), name, dict(columns), seed, self.timeout
        return key, self._submit(key, session.start, self._payload, *about)

    def call(self, key: int, calls: Sequence[Mapping[str, Any]]) -> Future[list[ToolResult]]:
        """Call tools of a conversation: name and arguments of each."""
        return self._submit(key, session.call, self._session(key), [dict(each) for each in calls], self.timeout)

    def end(self, key: int, *, keep: bool) -> Future[Outcome]:
        """The conversation is over; `keep`: its environment is wanted."""
        return self._submit(key, _end, self._payload, self._session(key), self.timeout, keep)

    def _session(self, key: int) -> tuple[int, int]:
        return self._number, key

    def result(self, future: Future[Any]) -> Any:
        """What a future gives. Raises RewardError."""
        limit = 4 * self.timeout + _GRACE if self._count else None  # a turn may call several tools
        try:
            done, _ = wait([future], timeout=limit)
            if not done:
                raise self._late()
            return future.result()
        except BrokenProcessPool as e:
            self.close()
            raise RewardError(
                "a process that runs tools died: a tool crashed, exited, or ran out of memory. Set reward_workers: 0 "
                "to see it fail in this process."
            ) from e

    def _late(self) -> RewardError:
        self.close()
        names = ", ".join(self.tools.names)
        return RewardError(
            f"a tool ({names}) did not return, and could not be interrupted {self.timeout:g} seconds after it was "
            "called (tool_timeout): it computes outside of Python, or waits for something that never comes. Give it a "
            "limit of its own."
        )

    def _submit(self, key: int, what: Callable[..., Any], *args: Any) -> Future[Any]:
        if not self._count:
            done: Future[Any] = Future()
            try:
                with settings_kept():
                    done.set_result(what(*args))
            except Exception as e:
                done.set_exception(e)
            return done
        environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        while len(self._pools) < self._count:
            self._pools.append(
                ProcessPoolExecutor(1, initializer=serve_the_run, initargs=(os.getpid(),), env=environment)
            )
        pool = self._pools[key % self._count]
        try:
            future: Future[Any] = pool.submit(what, *args)
        except BrokenProcessPool as e:
            failed: Future[Any] = Future()
            failed.set_exception(e)
            return failed
        self._started |= set(pool._processes)
        return future

    def close(self) -> None:
        """Kill the processes, and whatever they have left running."""
        for pool in self._pools:
            pool.shutdown(wait=False, kill_workers=True)
        for worker in self._started:
            processes.kill_family(worker)
        self._pools, self._started = [], set()


def _end(payload: session.Payload, key: tuple[int, int], limit: float, keep: bool) -> Outcome:
    return session.end(payload, key, limit, keep=keep)
