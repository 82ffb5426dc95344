"""Replicas on a Ray cluster. Chunks, seeds and scalars cross the network, never weights.

The driver keeps a replica of its own, to save and to measure; actors hold the others. An actor loads the base model
itself, repeats the updates so far, and proves by its digest that it holds the same bits; then it is given chunks. A
lost actor is replaced, between iterations or within one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from ..data.prompts import PromptBatch
from ..engines.base import Engine
from ..errors import FleetError, SeedtuneError
from ..es.population import Population
from ..rewards.function import Reward
from ..rewards.scorer import Scorer
from ..rewards.serialize import carried
from ..rollout.collector import ChunkOutput
from ..rollout.fleet import Update
from ..rollout.runner import RolloutJob, RolloutRunner, RolloutSpec
from .cluster import Cluster
from .dispatcher import Dispatcher, DispatchStats, Worker
from .messages import pack
from .ray_actor import Actor, RayReplica, first_line, other_weights, silence_ray_logs
from .ray_scorer import RayScorer
from .replica import MakeEngine, ReplicaHandshake, versions

log = logging.getLogger(__name__)


class RayFleet:
    """A `Fleet` whose rollouts are decoded by actors; `own` is the driver's replica. `make` makes an actor's engine;
    `files` are the model's, where nodes do not see them; `drop_stragglers` members may be left out of an iteration when
    nothing but slow replicas holds it up.

    Raises FleetError when Ray cannot be started or joined, or no node has what a replica needs.
    """

    def __init__(
        self,
        own: Engine,
        population: Population,
        spec: RolloutSpec,
        *,
        cluster: Cluster,
        make: MakeEngine,
        model: str,
        files: Mapping[str, bytes] | None = None,
        drop_stragglers: int = 0,
    ) -> None:
        self.engine, self.population = own, population
        self.rollouts = RolloutRunner(self, spec, mixes_members=own.mixes_members, max_dropped_members=drop_stragglers)
        self.cluster, self.make, self.model = cluster, make, model
        self.dispatcher = Dispatcher(cluster.timeout, self._on_lost)
        self.stats, self._tokens = DispatchStats(), list[int]()
        self._files = files
        self._state: tuple[str, str, int] | None = None
        self._updates: list[Update] = []
        self._joining: dict[ObjectRef[Any], Actor] = {}
        self._made = self._failures = self._refused = 0
        self._own_digest, self._connected = "", False
        self._software: str | None = None
        self._started, self._lost = False, 0
        self._connect()

    def _connect(self) -> None:
        c = self.cluster
        here = {"num_cpus": c.cpus * c.replicas, "num_gpus": c.gpus * c.replicas or None, "include_dashboard": False}
        options: dict[str, Any] = {"address": c.address} if c.address else {"address": "local", **here}
        self._ours = not ray.is_initialized()
        if self._ours:
            c.check_reachable()
            silence_ray_logs()
        try:
            ray.init(**options, log_to_driver=False, ignore_reinit_error=True, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
            raise FleetError(c.connection_error(str(e))) from e
        self._connected = True
        nodes = ray.nodes()
        room = c.room(nodes)
        if not room:
            raise FleetError(
                f"no node of the cluster has {c.wants()}, which a replica needs (replica_cpus, replica_gpus). "
                f"There is: {c.lacks(nodes)}."
            )
        if room < c.replicas:
            log.warning(
                f"There is room for {room} of {c.replicas} replicas of {c.wants()} ({c.lacks(nodes)}); the others join "
                "when nodes do."
            )
        if not c.gpus and any(node.get("Resources", {}).get("GPU") for node in nodes):
            log.warning("The cluster has GPUs, and the replicas ask for none: set replica_gpus to use them.")
        self._shared = ray.put(self._files) if self._files else None

    def _spawn(self) -> None:
        """Start a replica; it joins when it holds the center."""
        self._made += 1
        c = self.cluster
        remote = ray.remote(RayReplica).options(num_cpus=c.cpus, num_gpus=c.gpus, scheduling_strategy="SPREAD")
        actor = remote.remote(self.make, self.model, self.population, self._shared)
        replica = Actor(f"replica-{self._made}", actor, self.engine.texts.completion)
        self._joining[self._join(replica)] = replica

    def _join(self, replica: Actor) -> ObjectRef[Any]:
        joined: ObjectRef[Any] = replica.actor.join.remote(versions(), self._state, self._updates, self.engine.sigma)
        return joined

    def _admit(self, wait: float = 0.0) -> None:
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
                joined: ReplicaHandshake = ray.get(ref)
            except ray.exceptions.RayError as e:
                self._failed(replica, e)
                continue
            self._software = joined.software if self._software is None else self._software
            if why := joined.differs(self.engine.describe(), self._current_digest(), self._software):
                self._refuse(replica, f"{replica.name} on {joined.host} {why}")
                continue
            for remark in set(joined.remarks) - set(self.engine.remarks):
                log.warning(f"{replica.name} on {joined.host} {remark}.")
            replica.host, replica.pid, replica.expected = joined.host, joined.pid, joined.digest
            self._failures = 0
            self.dispatcher.join(replica)
            if self._started:
                log.info(f"{replica.name} on {joined.host} has joined.")
        self.dispatcher.drain_events()

    def _refuse(self, replica: Actor, why: str) -> None:
        """Continue without it, if there are others. Raises FleetError when none is left."""
        ray.kill(replica.actor)
        if not self.dispatcher.workers and not self._joining:
            raise FleetError(why)
        self._refused += 1
        log.warning(f"{why} It was refused; the run continues without it.")

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
            log.warning(f"{why}; another is started.")

    def _on_lost(self, worker: Worker, why: str) -> None:
        assert isinstance(worker, Actor)
        self._refused += not worker.replaceable
        self._lost += 1
        what = (
            "its work goes to others, and another is started"
            if worker.replaceable
            else "it was removed, and its work goes to others"
        )
        reason = why.splitlines()[0] if why else "no reason"
        log.warning(f"{worker.name} on {worker.host} is gone ({reason}); {what}.")
        ray.kill(worker.actor)
        if self._refused >= self.cluster.replicas:
            raise FleetError(f"no replica is left: {why} The iterations before are safe; use --resume.")

    def start(self, batch: PromptBatch) -> None:
        """Warns when an iteration has fewer chunks than there are replicas."""
        chunks, replicas = len(self.rollouts.plan(self.population.ask(1), batch, 1)), self.cluster.replicas
        if chunks < replicas:
            log.warning(
                f"An iteration has {chunks} chunk{'s' * (chunks > 1)} for {replicas} replicas: some will idle. A "
                f"chunk_size smaller than {self.rollouts.spec.chunk_size} makes more chunks of it; a resumed run must "
                "keep its own."
            )

    def scorer(self, rewards: Sequence[Reward], *, workers: int | None, timeout: float) -> Scorer:
        """`workers` None: replicas score what they decode, or, as they have no whole groups, as many actors as there
        are replicas. Otherwise so many actors on the cluster; 0: this process.
        """
        if any(reward.reads_outputs for reward in rewards):
            return Scorer(carried(rewards), workers=1, timeout=timeout, on_replicas=True)
        if workers is None and self.rollouts.spec.reward_batch != "any":
            workers = self.cluster.replicas
        if workers is None:
            return Scorer(carried(rewards), workers=1, timeout=timeout, on_replicas=True)
        kind = RayScorer if workers else Scorer
        return kind(rewards, workers=workers, timeout=timeout)

    def execute(self, job: RolloutJob) -> set[int]:
        """As `ChunkExecutor.execute`, on the replicas."""
        for replica in self._replicas:
            replica.expected, replica.sent, replica.received = self._current_digest(), 0, 0
        self._tokens = [0] * len(job.tasks)

        def on_result(number: int, outputs: Sequence[ChunkOutput]) -> None:
            for output in outputs:
                job.on_output(number, output)
                self._tokens[number] += sum(len(completion.ids) for completion in output.rows.values())
            job.on_chunk()

        check_stop = partial(job.on_output, 0, ChunkOutput({}))  # raises Interrupted when the user wants to stop

        def tick() -> None:
            self._admit()
            check_stop()

        with job.clock.measure(job.work):
            self._wait_for_replicas(check_stop)
            self.stats = self.dispatcher.run(job.tasks, on_result, tick, job.may_drop)
        with job.clock.measure("perturb"):
            self.engine.restore()
        return self.stats.dropped

    def _wait_for_replicas(self, tick: Callable[[], None]) -> None:
        """Until one is ready. Raises FleetError when that takes too long."""
        began = time.monotonic()
        self._admit()
        while not self.dispatcher.workers:
            if time.monotonic() - began > self.cluster.timeout:
                free = ray.available_resources()
                raise FleetError(
                    f"no replica was ready after {self.cluster.timeout:.0f} s (replica_timeout). Each needs "
                    f"{self.cluster.wants()}; of the cluster is free: {free.get('CPU', 0):g} CPU, "
                    f"{free.get('GPU', 0):g} GPU."
                )
            self._admit(wait=1.0)
            tick()
        there = len(self.dispatcher.workers)
        if not self._started and there < self.cluster.replicas:
            log.info(f"{there} of {self.cluster.replicas} replicas are ready, and begin; others join as they come.")
        self._started = True

    @property
    def _replicas(self) -> list[Actor]:
        self.dispatcher.drain_events()
        return [worker for worker in self.dispatcher.workers if isinstance(worker, Actor)]

    def update(self, iteration: int, coefficients: NDArray[np.float32], learning_rate: float) -> float:
        update = (iteration, coefficients, learning_rate)
        self._updates.append(update)
        payload = pack(update)
        for replica in self._replicas:
            replica.update(payload)
        self._join_again()  # they need this one, too
        self._own_digest = ""
        return self.engine.update(self.population.ask(iteration), coefficients, learning_rate)

    def _join_again(self) -> None:
        self._joining = {self._join(replica): replica for replica in self._joining.values()}

    def reset(self) -> None:
        """Replicas are started anew, and repeat the updates that follow."""
        self.engine.reset()
        self._let_go()
        self._updates, self._state, self._own_digest = [], None, ""

    def set_sigma(self, sigma: float) -> None:
        self.engine.set_sigma(sigma)
        for replica in self._replicas:
            replica.actor.set_sigma.remote(sigma)
        self._join_again()

    def _current_digest(self) -> str:
        self._own_digest = self._own_digest or self.engine.digest()
        return self._own_digest

    def digest(self) -> str:
        """The driver's; a replica that holds other weights is removed, and another one is started in its place. A
        replica that is still busy with a chunk is not waited for: the digest comes with its next result.
        """
        own = self._current_digest()
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

    def load_state(self, file: Path, digest: str, updates: Sequence[Update]) -> bool:
        """`updates` are for replicas that cannot read the state, or come when it is gone."""
        found = self.engine.load_state(file, digest, len(updates))
        if found:
            self._state, self._updates = (str(file.absolute()), digest, len(updates)), list(updates)
            self._own_digest = ""
        return found

    def metrics(self) -> dict[str, float]:
        """Of the last rollout: replicas, the share of their time that was useful, tokens per second of the slowest and
        the fastest, and bytes to and from the busiest replica, with those of the update behind it.
        """
        replicas, tokens = self._replicas, Counter[str]()
        for number, name in self.stats.by.items():
            tokens[name] += self._tokens[number]
        speeds = [tokens[name] / seconds for name, seconds in self.stats.busy.items() if seconds and tokens[name]]
        found = {
            "fleet/replicas": len(replicas),
            "fleet/utilization": self.stats.utilization,
            "fleet/slowest": min(speeds, default=0.0),
            "fleet/fastest": max(speeds, default=0.0),
            "fleet/bytes_sent": max((r.sent for r in replicas), default=0),
            "fleet/bytes_received": max((r.received for r in replicas), default=0),
            "fleet/lost": self._lost,
            "fleet/speculative": self.stats.num_speculative,
        }
        self._lost = 0
        return {name: float(value) for name, value in found.items()}

    def close(self) -> None:
        """Let the replicas go, and the cluster, if it was started for this run."""
        if not self._connected:
            return
        self._let_go()
        self._connected = False
        if self._ours:
            ray.shutdown()

    def _let_go(self) -> None:
        for replica in [*self._replicas, *self._joining.values()]:
            ray.kill(replica.actor)
        self.dispatcher.clear()
        self._joining = {}
