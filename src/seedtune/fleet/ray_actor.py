"""A replica on the cluster as the dispatcher sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
from ray import ObjectRef

from ..errors import SeedtuneError
from .dispatch import WorkerLost
from .plan import Asked, Work
from .replica import Joined, OutOfMemory, Replica
from .rows import Part
from .wire import ToCompletion, pack, pack_asked, pack_work, unpack, unpack_parts


class RayReplica(Replica):
    """Says of itself where it is by the address that the cluster knows: names of machines may be shared."""

    def join(self, *args: Any) -> Joined:
        joined = super().join(*args)
        return dataclasses.replace(joined, host=f"{ray.util.get_node_ip_address()} ({joined.host})")


class Actor:
    """Bytes sent and received, tokens written, the digest that its weights must have, and whether to replace it."""

    def __init__(self, name: str, actor: Any, to_completion: ToCompletion, note: Callable[[str], None]) -> None:
        self.name, self.actor, self.to_completion, self.note = name, actor, to_completion, note
        self.host = ""
        self.sent = self.received = self.pid = 0
        self.expected = ""
        self.digest: ObjectRef[str] | None = None
        self.replaceable = True
        self._asked: Asked | None = None
        self._known: set[str] = set()

    def answer(self, work: Work) -> Future[Any]:
        if work.asked is not None and work.asked is not self._asked:
            self._ask(work.asked)
        payload, expected = self._counted(pack_work(work)), self.expected
        return chained(self.actor.answer.remote(payload), lambda answered: self._parts(answered, expected), self._told)

    def _ask(self, asked: Asked) -> None:
        """Calls arrive in the order in which they are sent."""
        functions = asked.functions
        if functions is not None and functions.key not in self._known:
            self.actor.learn.remote(self._counted(pack(functions)))
            self._known.add(functions.key)
        self.actor.ask.remote(self._counted(pack_asked(asked)))
        self._asked = asked

    def _counted(self, payload: bytes) -> bytes:
        self.sent += len(payload)
        return payload

    def _parts(self, answered: bytes, expected: str) -> list[Part]:
        """What came back, if it came from the right weights."""
        self.received += len(answered)
        packed, halved, digest = unpack(answered)
        if digest != expected:
            raise WorkerLost(other_weights(digest, expected))
        if halved:
            self.note(
                f"{self.name} on {self.host} ran out of memory; it decodes {halved} rows at once from now on. Rewards "
                "may differ in their last bits from those of a run with memory enough; set generation_batch_size."
            )
        return unpack_parts(packed, self.to_completion)

    def _told(self, cause: BaseException) -> BaseException:
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
    ref: ObjectRef[Any], then: Callable[[Any], Any], told: Callable[[BaseException], BaseException]
) -> Future[Any]:
    """A future of what `then` makes of the result. A lost actor is `WorkerLost`; what one raised goes to `told`."""
    out: Future[Any] = Future()

    def done(future: Future[Any]) -> None:
        try:
            out.set_result(then(future.result()))
        except ray.exceptions.RayTaskError as e:
            out.set_exception(told(getattr(e, "cause", None) or e))
        except (ray.exceptions.RayError, OSError) as e:
            out.set_exception(WorkerLost(first_line(e)))
        except BaseException as e:
            out.set_exception(e)

    ref.future().add_done_callback(done)
    return out


def hush() -> None:
    """Ray prints what its daemons say of lost workers, a paragraph each, on the driver's standard output; the fleet
    says it in a line.
    """
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None


def other_weights(theirs: str, own: str) -> str:
    return f"its weights have the digest {theirs}, the driver's {own}"


def first_line(e: BaseException) -> str:
    return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
