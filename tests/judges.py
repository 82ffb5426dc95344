"""Reward functions that are objects, and what such functions raise: apart, for processes that only score."""

from __future__ import annotations

import asyncio


class Judge:
    def __init__(self, strictness):
        self.strictness = strictness

    def __call__(self, completions, **kwargs):
        return [self.strictness] * len(completions)

    def method(self, completions, **kwargs):
        return [self.strictness] * len(completions)


class Client:
    """Keeps what belongs to an event loop: a lock, a task, a semaphore."""

    def __init__(self):
        self.lock, self.background, self.loops = None, None, set()

    async def __call__(self, completions, **kwargs):
        self.loops.add(id(asyncio.get_running_loop()))
        if self.lock is None:
            self.lock = asyncio.Lock()
            self.background = asyncio.create_task(asyncio.sleep(600))
            await self.lock.acquire()
            asyncio.get_running_loop().call_later(0.2, self.lock.release)
        async with self.lock:
            assert not self.background.done()
        return [float(len(self.loops))] * len(completions)


class OutcomeError(BaseException):
    """As of pytest or func_timeout: no Exception."""
