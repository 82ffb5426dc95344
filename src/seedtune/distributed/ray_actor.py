"""A replica on the cluster as the dispatcher sees it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
from ray import ObjectRef

from ..errors import SeedtuneError
from ..rollout.chunks import ChunkTask, EvalContext
from ..rollout.collector import ChunkOutput
from .dispatcher import WorkerLost
from .messages import ToCompletion, pack, pack_context, pack_task, unpack, unpack_outputs
from .replica import OutOfMemory, Replica, ReplicaHandshake

log = logging.getLogger(__name__)


class RayReplica(Replica):
    """Says of itself where it is by the address that the cluster knows: names of machines may be shared."""

    def join(self, *args: Any) -> ReplicaHandshake:
        joined = super().join(*args)
        return dataclasses.replace(joined, host=f"{ray.util.get_node_ip_address()} ({joined.host})")


class Actor:
    """Bytes sent and received, the digest that its weights must have, and whether to replace it when it is lost."""

    def __init__(self, name: str, actor: Any, to_completion: ToCompletion) -> None:
        self.name, self.actor, self.to_completion = name, actor, to_completion
        self.host = ""
        self.sent = self.received = self.pid = 0
        self.expected = ""
        self.digest: ObjectRef[str] | None = None
        self.replaceable = True
        self._context: EvalContext | None = None
        self._known: set[str] = set()

    def execute(self, task: ChunkTask) -> Future[Any]:
        if task.context is not None and task.context is not self._context:
            self._send_context(task.context)
        payload, expected = self._counted(pack_task(task)), self.expected
        result = self.actor.execute.remote(payload)
        return chained(result, lambda packed: self._outputs(packed, expected, task), self._dispatcher_error)

    def _send_context(self, context: EvalContext) -> None:
        """Calls arrive in the order in which they are sent."""
        functions = context.functions
        if functions is not None and functions.key not in self._known:
            self.actor.add_functions.remote(self._counted(pack(functions)))
            self._known.add(functions.key)
        self.actor.set_context.remote(self._counted(pack_context(context)))
        self._context = context

    def _counted(self, payload: bytes) -> bytes:
        self.sent += len(payload)
        return payload

    def _outputs(self, result: bytes, expected: str, task: ChunkTask) -> list[ChunkOutput]:
        """What came back, if it came from the right weights."""
        self.received += len(result)
        packed, halved, digest = unpack(result)
        if digest != expected:
            raise WorkerLost(other_weights(digest, expected))
        if halved:
            log.warning(
                f"{self.name} on {self.host} ran out of memory; it decodes {halved} rows at once from now on. Rewards "
                "may differ in their last bits from those of a run with memory enough; set generation_batch_size."
            )
        return unpack_outputs(packed, self.to_completion, task.prompts if task.reads else ())

    def _dispatcher_error(self, cause: BaseException) -> BaseException:
        """What an error of the replica's means to the dispatcher."""
        if isinstance(cause, OutOfMemory):
            self.replaceable = False
            return WorkerLost(str(cause))
        if isinstance(cause, SeedtuneError):
            return cause
        return WorkerLost(f"{type(cause).__name__}: {cause}")

    def update(self, payload: bytes) -> None:
        self.digest = self.actor.update.remote(self._counted(payload))


def chained(
    ref: ObjectRef[Any], then: Callable[[Any], Any], error: Callable[[BaseException], BaseException]
) -> Future[Any]:
    """A future of what `then` makes of the result. A lost actor is `WorkerLost`; what one raised goes to `error`."""
    out: Future[Any] = Future()

    def done(future: Future[Any]) -> None:
        try:
            out.set_result(then(future.result()))
        except ray.exceptions.RayTaskError as e:
            out.set_exception(error(getattr(e, "cause", None) or e))
        except (ray.exceptions.RayError, OSError) as e:
            out.set_exception(WorkerLost(first_line(e)))
        except BaseException as e:
            out.set_exception(e)

    ref.future().add_done_callback(done)
    return out


def silence_ray_logs() -> None:
    """Ray prints a paragraph per lost worker on the driver's standard output; the fleet logs one line."""
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None


def other_weights(theirs: str, own: str) -> str:
    return f"its weights have the digest {theirs}, the driver's {own}"


def first_line(e: BaseException) -> str:
    return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
