"""Ctrl-C: the first ends the run after the iteration, the second drops the iteration, the third is Python's own. And
what signals do to processes that score.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

#: What asks a program to end, and what tells that one has ended. Not SIGHUP: under nohup it is ignored on purpose.
_USUAL = ("SIGINT", "SIGQUIT", "SIGTERM", "SIGCHLD")


class Interrupts:
    """Counts SIGINT (and SIGTERM, which schedulers send) while it is entered, in the main thread."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _end_by(number)
            return
        self.count += 1
        if self.count == 1:
            log.warning("Stopping after this iteration, then saving. Ctrl-C again drops the iteration and saves now.")
        elif self.count == 2:
            log.warning("Dropping this iteration at the next batch, then saving.")
        else:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt


def reset() -> None:
    """Signals of a fresh process, for this one and for those that it starts, whatever it inherited: none is blocked,
    and none is ignored of those that programs rely on.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for name in _USUAL:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def outlive() -> None:
    """SIGINT and SIGTERM do not end this process; they do end those that it starts. A signal that is ignored would be
    ignored by them, too (POSIX execve); one that is handled is not.
    """
    process = os.getpid()

    def stay(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            _end_by(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stay)


def _end_by(number: int) -> None:
    """In a fork, which has inherited the handler: end by the signal as any other process."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
