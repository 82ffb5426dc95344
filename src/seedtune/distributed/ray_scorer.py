"""Scoring actors: rewards are computed wherever the cluster has a core to spare."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cloudpickle
import ray

from ..rewards.call import Batch, Scores, call_all
from ..rewards.function import Reward
from ..rewards.scorer import Scorer
from ..rewards.serialize import carried, load
from ..utils import signals

#: A batch is sent again to a new actor when its actor's machine is lost; a function that kills its process twice is
#: to blame itself.
_TRIES = 2


class _Scoring:
    """Scores batches, in a process of its own."""

    def __init__(self, functions: bytes) -> None:
        self.functions = functions
        signals.reset()  # Ray blocks SIGINT, also for what reward functions start

    def score(self, batch: bytes) -> list[Scores]:
        what: Batch = cloudpickle.loads(batch)  # of this run's driver
        return call_all(load(self.functions), what)


class RayScorer(Scorer):
    """As `Scorer`, with `workers` actors. They ask for no core of their own: they work while replicas wait, or beside
    them.
    """

    def __init__(self, rewards: Sequence[Reward], *, workers: int, timeout: float) -> None:
        super().__init__(carried(rewards), workers=workers, timeout=timeout)
        self._actors: list[Any] = []
        self._load: list[int] = []
        self._lock, self._closed = threading.RLock(), False  # what actors say comes from another thread

    def submit(self, batch: Batch) -> Future[list[Scores]]:
        out: Future[list[Scores]] = Future()
        self._send(cloudpickle.dumps(batch), out, _TRIES)
        return out

    def _send(self, batch: bytes, out: Future[list[Scores]], tries: int) -> None:
        with self._lock:
            if self._closed:
                out.set_exception(BrokenProcessPool("the run has ended"))
                return
            while len(self._actors) < self._workers:
                self._actors.append(self._actor())
                self._load.append(0)
            n = self._load.index(min(self._load))
            self._load[n] += 1
            actor = self._actors[n]

        def done(future: Future[list[Scores]]) -> None:
            try:
                out.set_result(future.result())
            except ray.exceptions.RayTaskError as e:
                out.set_exception(getattr(e, "cause", None) or e)
            except ray.exceptions.RayError as e:
                again(e)
            finally:
                with self._lock:
                    if not self._closed and self._actors[n] is actor:
                        self._load[n] -= 1

        def again(e: Exception) -> None:
            with self._lock:
                if not self._closed and self._actors[n] is actor:
                    self._actors[n], self._load[n] = self._actor(), 0
            if tries > 1:
                self._send(batch, out, tries - 1)
            else:
                out.set_exception(BrokenProcessPool(str(e)))

        actor.score.remote(batch).future().add_done_callback(done)

    def _actor(self) -> Any:
        options = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
        return ray.remote(_Scoring).options(**options).remote(self.functions.pickled)

    def close(self) -> None:
        """End the actors, at once."""
        with self._lock:
            actors, self._actors, self._load, self._closed = self._actors, [], [], True
        for actor in actors:
            if ray.is_initialized():
                ray.kill(actor)
