"""Replicas on a Ray cluster. Work, seeds and scalars cross the network, never weights.

The driver keeps a replica of its own, to save and to measure; actors hold the others. An actor loads the base model
itself, repeats the updates so far, and proves by its digest that it holds the same bits; then it pulls chunks. Whoever
is lost is replaced, between iterations or within one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from ..errors import FleetError, SeedtuneError
from ..tasks.functions import by_value
from ..tasks.pool import Scorer
from ..tasks.reward import Reward
from .answers import Clock
from .cluster import Cluster
from .dispatch import Dispatcher, Tally, Worker
from .local import LocalFleet, MayLeave, OnPart
from .plan import Questions, Work
from .ray_actor import Actor, RayReplica, first_line, hush, other_weights
from .ray_scoring import RayScorer
from .replica import Joined, MakeEngine, Update, versions
from .rows import Part, ReplicaScorer
from .wire import pack


class RayFleet(LocalFleet):
    """As `LocalFleet`, with the rows of an evaluation answered by actors. `note` tells the user who came and went;
    `files` are the model's, where nodes do not see them; `spare` members may be left out of an iteration when nothing
    but slow replicas holds it up.

    Raises FleetError when Ray cannot be started or joined, or no node has what a replica asks for.
    """

    def __init__(
        self,
        *args: Any,
        cluster: Cluster,
        make: MakeEngine,
        model: str,
        files: Mapping[str, bytes] | None = None,
        spare: int = 0,
        note: Callable[[str], None] = print,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.cluster, self.make, self.model, self.note, self.spare = cluster, make, model, note, spare
        self.dispatcher = Dispatcher(cluster.timeout, self._on_lost)
        self.tally, self._tokens = Tally(), list[int]()
        self._files = files
        self._begin: tuple[str, str, int] | None = None
        self._before: list[Update] = []
        self._updates: list[Update] = []
        self._joining: dict[ObjectRef[Any], Actor] = {}
        self._made = self._failures = self._refused = 0
        self._own_digest, self._connected = "", False
        self._software: str | None = None
        self._answered, self._lost = False, 0
        self._connect()

    # --- Ray ----------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        c = self.cluster
        here = {"num_cpus": c.cpus * c.replicas, "num_gpus": c.gpus * c.replicas or None, "include_dashboard": False}
        options: dict[str, Any] = {"address": c.address} if c.address else {"address": "local", **here}
        self._ours = not ray.is_initialized()
        if self._ours:
            c.knock()
            hush()
        try:
            ray.init(**options, log_to_driver=False, ignore_reinit_error=True, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
            raise FleetError(c.not_let_in(str(e))) from e
        self._connected = True
        nodes = ray.nodes()
        room = c.room(nodes)
        if not room:
            raise FleetError(
                f"no node of the cluster has {c.wants()}, which a replica asks for (replica_cpus, replica_gpus). "
                f"There is: {c.lacks(nodes)}."
            )
        if room < c.replicas:
            self.note(
                f"There is room for {room} of {c.replicas} replicas of {c.wants()} ({c.lacks(nodes)}); the others join "
                "when nodes do."
            )
        if not c.gpus and any(node.get("Resources", {}).get("GPU") for node in nodes):
            self.note("The cluster has GPUs, and the replicas ask for none: set replica_gpus to use them.")
        self._shared = ray.put(self._files) if self._files else None

    def _spawn(self) -> None:
        """Start a replica; it joins when it holds the centre."""
        self._made += 1
        c = self.cluster
        remote = ray.remote(RayReplica).options(num_cpus=c.cpus, num_gpus=c.gpus, scheduling_strategy="SPREAD")
        actor = remote.remote(self.make, self.model, self.population, self._shared)
        replica = Actor(f"replica-{self._made}", actor, self.engine.texts.completion, self.note)
        self._joining[self._join(replica)] = replica

    def _join(self, replica: Actor) -> ObjectRef[Any]:
        joined: ObjectRef[Any] = replica.actor.join.remote(
            versions(), self._begin, self._before, self._updates, self.engine.sigma
        )
        return joined

    def _welcome(self, wait: float = 0.0) -> None:
        """Replicas that have caught up join; missing ones are started anew. Raises FleetError for one that differs,
        unless others do the work.
        """
        if not self._connected:
            self._connect()
        there = len(self.dispatcher.workers) + len(self._joining)
        for _ in range(self.cluster.replicas - self._refused - there):
            self._spawn()
        if not self._joining:
            return
        for ref in ray.wait(list(self._joining), num_returns=1, timeout=wait)[0]:
            replica = self._joining.pop(ref)
            try:
                joined: Joined = ray.get(ref)
            except ray.exceptions.RayError as e:
                self._failed(replica, e)
                continue
            self._software = joined.software if self._software is None else self._software
            if why := joined.differs(self.engine.describe(), self._digest_now(), self._software):
                self._refuse(replica, f"{replica.name} on {joined.host} {why}")
                continue
            for remark in joined.remarks:
                self.note(f"{replica.name} on {joined.host} {remark}.")
            replica.host, replica.pid, replica.expected = joined.host, joined.pid, joined.digest
            self._failures = 0
            self.dispatcher.join(replica)
            if self._answered:
                self.note(f"{replica.name} on {joined.host} has joined.")
        self.dispatcher.settle()

    def _refuse(self, replica: Actor, why: str) -> None:
        """Go on without it, if others are there. Raises FleetError when nobody is left."""
        ray.kill(replica.actor)
        if not self.dispatcher.workers and not self._joining:
            raise FleetError(why)
        self._refused += 1
        self.note(f"{why} It was refused; the run goes on without it.")

    def _failed(self, replica: Actor, e: Exception) -> None:
        """A replica could not start. The same mistake three times over is no accident."""
        self._failures += 1
        cause = getattr(e, "cause", None) or e
        why = f"{replica.name} cannot start: {first_line(cause)}"
        if isinstance(cause, SeedtuneError):
            self._refuse(replica, f"{replica.name} cannot start: {cause}")
        elif self._failures >= 3:
            self._refuse(replica, f"{why} (the third that failed)")
        else:
            self.note(f"{why}; another is started.")

    def _on_lost(self, worker: Worker, why: str) -> None:
        assert isinstance(worker, Actor)
        self._refused += not worker.replaceable
        self._lost += 1
        what = (
            "its work goes to others, and another is started"
            if worker.replaceable
            else "it was removed, and its work goes to others"
        )
        self.note(f"{worker.name} on {worker.host} is gone ({why.splitlines()[0] if why else 'no reason'}); {what}.")
        ray.kill(worker.actor)
        if self._refused >= self.cluster.replicas:
            raise FleetError(f"no replica is left: {why} The iterations before are safe; --resume goes on from there.")

    # --- the work of a fleet ------------------------------------------------------------------------------------------

    def begin(self, questions: Questions) -> None:
        """Notes when an iteration has less to hand out than there are to take it."""
        chunks, replicas = len(self.plan(self.population.size, questions, 1)), self.cluster.replicas
        if chunks < replicas:
            self.note(
                f"An iteration has {chunks} chunk{'s' * (chunks > 1)} for {replicas} replicas: some will idle. A "
                f"chunk_size smaller than {self.chunk_size} makes more chunks of it; a resumed run must keep its own."
            )

    def scorer(self, rewards: Sequence[Reward], *, workers: int | None, timeout: float) -> Scorer:
        """None: replicas score what they decode. Otherwise actors anywhere on the cluster; 0: this process."""
        if workers is None:
            return ReplicaScorer(by_value(rewards), workers=1, timeout=timeout)
        kind = RayScorer if workers else Scorer
        return kind(rewards, workers=workers, timeout=timeout)

    def _answer(
        self,
        works: Sequence[Work],
        on_part: OnPart,
        on_chunk: Callable[[], None],
        clock: Clock,
        may_leave: MayLeave,
    ) -> set[int]:
        for replica in self._replicas:
            replica.expected, replica.sent, replica.received = self._digest_now(), 0, 0
        self._tokens = [0] * len(works)

        def on_answer(number: int, parts: Sequence[Part]) -> None:
            for part in parts:
                on_part(number, part)
                self._tokens[number] += sum(len(completion.ids) for completion in part.rows.values())
            on_chunk()

        def tick() -> None:
            self._welcome()
            on_part(0, Part({}))  # asks whether the user wants to stop

        with clock.measure("generate"):
            began = time.monotonic()
            self._welcome()
            while not self.dispatcher.workers:
                if time.monotonic() - began > self.cluster.timeout:
                    raise FleetError(
                        f"no replica was ready after {self.cluster.timeout:.0f} s (replica_timeout). Each asks for "
                        f"{self.cluster.wants()}; of the cluster is free: {_free()}."
                    )
                self._welcome(wait=1.0)
                on_part(0, Part({}))
            there = len(self.dispatcher.workers)
            if not self._answered and there < self.cluster.replicas:
                self.note(
                    f"{there} of {self.cluster.replicas} replicas are ready, and begin; others join as they come."
                )
            self._answered = True
            self.tally = self.dispatcher.run(works, on_answer, tick, may_leave)
        return self.tally.left

    def update(self, iteration: int, coefficients: NDArray[np.float32], rate: float) -> float:
        update = (iteration, coefficients, rate)
        self._updates.append(update)
        payload = pack(update)
        for replica in self._replicas:
            replica.update(payload)
        for ref, replica in list(self._joining.items()):  # they were told what had been: they must learn this, too
            del self._joining[ref]
            self._joining[self._join(replica)] = replica
        self._own_digest = ""
        return super().update(iteration, coefficients, rate)

    def _digest_now(self) -> str:
        self._own_digest = self._own_digest or super().digest()
        return self._own_digest

    def digest(self) -> str:
        """The driver's; a replica that holds other weights is removed, and another one is started in its place. Who is
        still busy with a chunk is not waited for: the digest comes with its next answer.
        """
        own = self._digest_now()
        for replica in self._replicas:
            replica.expected = own
            if replica.digest is None or self.dispatcher.busy(replica):
                continue
            try:
                theirs = ray.get(replica.digest, timeout=self.cluster.timeout)
            except (ray.exceptions.RayError, TimeoutError) as e:
                self.dispatcher.drop(replica, first_line(e))
                continue
            replica.digest = None
            if theirs != own:
                self.dispatcher.drop(replica, other_weights(theirs, own))
        return own

    def load_state(self, file: Any, digest: str, steps: int) -> bool:
        found = super().load_state(file, digest, steps)
        if found:
            self._begin, self._updates, self._own_digest = (str(file.absolute()), digest, steps), [], ""
        return found

    def remember(self, updates: Sequence[Update]) -> None:
        """For replicas that cannot read the state, or come when it is gone."""
        self._before = list(updates)

    @property
    def _replicas(self) -> list[Actor]:
        self.dispatcher.settle()
        return [worker for worker in self.dispatcher.workers if isinstance(worker, Actor)]

    def metrics(self) -> dict[str, float]:
        """Of the last evaluation: replicas, the share of their time that was useful, tokens a second of the slowest and
        the fastest, and bytes to and from the busiest replica, with those of the update behind it.
        """
        replicas, tokens = self._replicas, Counter[str]()
        for number, name in self.tally.by.items():
            tokens[name] += self._tokens[number]
        speeds = [tokens[name] / seconds for name, seconds in self.tally.busy.items() if seconds and tokens[name]]
        found = {
            "fleet/replicas": len(replicas),
            "fleet/utilisation": self.tally.utilisation,
            "fleet/slowest": min(speeds, default=0.0),
            "fleet/fastest": max(speeds, default=0.0),
            "fleet/bytes_sent": max((r.sent for r in replicas), default=0),
            "fleet/bytes_received": max((r.received for r in replicas), default=0),
            "fleet/lost": self._lost,
            "fleet/asked_twice": self.tally.twice,
        }
        self._lost = 0
        return {name: float(value) for name, value in found.items()}

    def close(self) -> None:
        """Let the replicas go, and the cluster, if it was started for this run."""
        if not self._connected:
            return
        for replica in [*self._replicas, *self._joining.values()]:
            ray.kill(replica.actor)
        self.dispatcher.clear()
        self._joining, self._connected = {}, False
        if self._ours:
            ray.shutdown()


def _free() -> str:
    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
