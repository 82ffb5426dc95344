"""Scoring in worker processes, with a time limit, while completions are still being generated."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cloudpickle
from loky import ProcessPoolExecutor

from ..errors import RewardError
from ..utils import processes, signals
from ..utils.stdio import open_closed
from .call import Batch, Scores, call_all, call_here
from .function import Reward, asked_for
from .serialize import Functions, load


class Scorer:
    """Scores batches with several reward functions, in `workers` processes (None: one); `workers=0` scores in this
    process, at once and without a limit. `Functions` from another process are not loaded in this one. `on_replicas`:
    replicas score what they decode, with scorers of their own; this one stands for them.

    A function that does not return within `timeout` seconds stops the run with a RewardError that names it: the
    worker is killed, no reward is made up. Raises RewardError for functions that cannot be sent to a process.
    """

    def __init__(
        self, rewards: Sequence[Reward] | Functions, *, workers: int | None, timeout: float, on_replicas: bool = False
    ) -> None:
        self.timeout, self.on_replicas = timeout, on_replicas
        self._workers = 1 if workers is None else workers
        if not isinstance(rewards, Functions) and not on_replicas and any(r.reads_outputs for r in rewards):
            self._workers = 0  # where the forward pass runs
        self._pool: ProcessPoolExecutor | None = None
        self._started = set[int]()  # processes, also those that have ended
        self._seen, self._since = (0, 0), 0.0
        if isinstance(rewards, Functions):
            self.functions = rewards
        elif self._workers:
            self.functions = Functions.of(rewards)
        else:
            self._here = list(rewards)
            self.functions = Functions(tuple(r.name for r in rewards), b"", asked_for(rewards))

    def rewards(self) -> Sequence[Reward]:
        """The functions, to be called in this process. Raises RewardError."""
        return load(self.functions.pickled) if self.functions.pickled else self._here

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions, in their order."""
        return self.functions.names

    def submit(self, batch: Batch) -> Future[list[Scores]]:
        """Start scoring; the result is one `Scores` per reward function."""
        if not self._workers:
            done: Future[list[Scores]] = Future()
            done.set_result(call_here(self._here, batch))
            return done
        if self._pool is None:
            open_closed()  # loky flushes them
            environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            self._pool = ProcessPoolExecutor(
                self._workers, initializer=serve_the_run, initargs=(os.getpid(),), env=environment
            )
        try:
            future: Future[list[Scores]] = self._pool.submit(_score, self.functions.pickled, cloudpickle.dumps(batch))
        except BrokenProcessPool as e:
            raise self._died() from e
        self._started |= set(self._pool._processes)
        return future

    def gather(self, futures: Sequence[Future[list[Scores]]]) -> list[list[Scores]]:
        """Results in order. Raises RewardError when a function failed, or when nothing returned for `timeout` s."""
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=self.timeout if self._workers else None, return_when=FIRST_COMPLETED)
            if not done:
                raise self._late()
        self.check(futures)
        return [future.result() for future in futures]

    def check(self, futures: Sequence[Future[list[Scores]]]) -> None:
        """Raises RewardError when one of them has failed, or when none returned for `timeout` s; does not wait."""
        done = sum(future.done() for future in futures)
        if done == len(futures) or self._seen != (done, len(futures)):
            self._seen, self._since = (done, len(futures)), time.monotonic()
        elif time.monotonic() - self._since > self.timeout:
            raise self._late()
        try:
            for future in futures:
                if future.done() and (error := future.exception()):
                    raise error
        except BrokenProcessPool as e:
            raise self._died() from e

    def _late(self) -> RewardError:
        self.close()
        names = " or ".join(map(repr, self.names))
        return RewardError(
            f"reward function {names} did not return within {self.timeout:g} seconds. It may hang, or wait "
            "for input; fix it, or raise reward_timeout."
        )

    def _died(self) -> RewardError:
        names = " or ".join(map(repr, self.names))
        return RewardError(
            f"a scoring process died while it ran reward function {names}: it crashed, exited, or ran out of memory. "
            "Set reward_workers: 0 to see it fail in this process."
        )

    def close(self) -> None:
        """Kill the workers, and whatever they or their children have left running."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, kill_workers=True)
            self._pool = None
        for worker in self._started:
            processes.kill_family(worker)
        self._started = set()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def serve_the_run(run: int) -> None:
    """In the worker. Ctrl-C reaches every process of a terminal, and a scheduler's SIGTERM every process of a job; the
    run handles them, and needs its workers until it ends. What reward functions start is none of that.
    """
    multiprocessing.set_start_method(None, force=True)  # loky's own, which processes that they start do not know
    processes.lead_session()
    signals.reset()
    signals.outlive()
    processes.exit_with_parent(run)


def _score(functions: bytes, batch: bytes) -> list[Scores]:
    """In the worker. Functions given by name are imported here."""
    what: Batch = cloudpickle.loads(batch)
    try:
        return call_all(load(functions), what)
    except KeyboardInterrupt as e:  # Ctrl-C does not end this process
        raise RewardError("a reward function raised KeyboardInterrupt, which would end the run: raise another.") from e
