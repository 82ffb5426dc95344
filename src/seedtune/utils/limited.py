"""A process for functions that may not come back: what a model wrote may keep a computer algebra system busy for ever,
or fill the memory. Such a function ends by an alarm, and where that does not reach it, with its process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, TypeVar

from loky import ProcessPoolExecutor

from .alarm import Late, alarm
from .processes import exit_with_parent

T = TypeVar("T")
#: What such a process may hold of memory, in bytes, besides code and files that it maps.
_MEMORY = 4 << 30


class LimitedProcess:
    """One process, started when it is needed, that calls functions one after another.

    A call that takes `alarm` seconds is ended by SIGALRM, and one that does not end then is killed with its process
    after `limit` seconds. The first call of a process may take `start` seconds more: it imports what it needs.
    """

    def __init__(self, alarm: float = 0.5, limit: float = 0.8, start: float = 60) -> None:
        self.alarm, self.limit, self.start = alarm, limit, start
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._lock = threading.Lock()

    def call(self, function: Callable[..., T], *args: Any, imports: Callable[[], object] | None = None) -> T | None:
        """What the function returns there, or None where it takes too long, or takes the process down; what it raises
        is raised. `imports` is called there first, once, within `start`. All of them are found by name.
        """
        with self._lock:
            here = os.getpid()  # of a process that was forked, the other's is of no use
            if here not in self._pools:
                made = ProcessPoolExecutor(1, initializer=_begin, initargs=(here, imports))
                self._pools[here] = made
                with suppress(BrokenProcessPool, TimeoutError):
                    made.submit(os.getpid).result(timeout=self.start)
            try:
                found: T = self._pools[here].submit(_within, self.alarm, function, args).result(timeout=self.limit)
                return found
            except (TimeoutError, BrokenProcessPool):
                self._pools.pop(here).shutdown(wait=False, kill_workers=True)
                return None


def _begin(parent: int, imports: Callable[[], object] | None) -> None:
    """In the process."""
    exit_with_parent(parent)
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    if imports:
        imports()


def _within(seconds: float, function: Callable[..., T], args: tuple[Any, ...]) -> T | None:
    """In the process."""
    try:
        with alarm(seconds):
            return function(*args)
    except (Late, MemoryError):
        return None
