"""One event loop per process, in a thread of its own, for as long as the process lives: asynchronous reward functions
may keep clients and locks between calls, and run where another loop runs already (Jupyter).
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any


def start(awaitable: Awaitable[Any]) -> Callable[[], Any]:
    """Have it run; the function that is returned waits for its result, and raises what it raises."""
    loop, thread = _loop(os.getpid())
    future = asyncio.run_coroutine_threadsafe(_outcome(awaitable), loop)

    def wait() -> Any:
        while thread.is_alive():
            try:
                value, error = future.result(timeout=1)
            except TimeoutError:  # of this second, not of the function's: that is an outcome
                continue
            if error is not None:
                raise error
            return value
        raise RuntimeError("the event loop was stopped: by SystemExit or KeyboardInterrupt in a background task")

    return wait


async def _outcome(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Its result, or what it raised: SystemExit would end the loop, and cancellation has no other way out."""
    try:
        return await awaitable, None
    except BaseException as e:
        return None, e


async def _cancel_all() -> None:
    """What functions left running in the background."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=1)


@lru_cache(maxsize=1)
def _loop(process: int) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """That of this process; one that was forked has no thread of the other's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="seedtune-rewards", daemon=True)
    thread.start()

    def close() -> None:
        if os.getpid() == process:
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(timeout=2)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=1)
            if not thread.is_alive():
                loop.close()

    atexit.register(close)
    return loop, thread
