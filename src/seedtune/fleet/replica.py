"""A replica in a process of its own. What it is told and what it says are bytes, and few: seeds, scalars and texts.

Knows nothing of what carries the bytes.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Completion, Engine
from ..errors import RewardError
from ..es.population import Population
from ..noise import spec
from ..tasks.functions import Functions
from ..tasks.pool import Scorer
from .plan import Asked, Work
from .rows import Part, ScoredRows
from .wire import pack, pack_parts, unpack, unpack_asked, unpack_work

#: Makes an engine from a model's name or folder. It must be picklable.
MakeEngine = Callable[[str], Engine]
#: Iteration, coefficients [members], learning rate.
Update = tuple[int, NDArray[np.float32], float]


class OutOfMemory(Exception):
    """A chunk did not fit, nor did it with half the rows at once."""


@dataclass(frozen=True)
class Joined:
    """What a replica says of itself when it is ready (`digest` of its weights, `remarks` for the user, the `software`
    that decodes), or that its `versions` are others.
    """

    versions: tuple[str, ...]
    host: str
    pid: int
    digest: str = ""
    model: Any = None
    remarks: tuple[str, ...] = ()
    software: str = ""

    def differs(self, described: Mapping[str, Any], digest: str, software: str) -> str:
        """Why it cannot work for a driver whose model is this, with weights of this digest, beside replicas of this
        software; empty: it can.
        """
        if self.versions != versions():
            return (
                f"runs {' and '.join(self.versions)}, the driver {' and '.join(versions())}: install the same on "
                "every node."
            )
        if self.model != (described["digest"], described["scope"]):
            return (
                f"has another base model than the driver (digest {self.model[0]}, not {described['digest']}): every "
                "node must load the same files."
            )
        if self.digest != digest:
            return (
                "repeated the updates and holds other weights than the driver: its software computes otherwise. "
                "Versions must be the same on every node."
            )
        if self.software != software:
            return f"decodes by {self.software}, the replicas before it by {software}: install the same on every node."
        return ""


def versions() -> tuple[str, ...]:
    """What must be the same everywhere."""
    torch = version("torch").partition("+")[0]  # builds for CPU and GPU may work together
    parts = {"seedtune": version("seedtune"), "torch": torch, "transformers": version("transformers")}
    return (*(f"{name} {number}" for name, number in parts.items()), f"noise stream {spec.VERSION}")


class Replica:
    """Made where it runs. `files`: the model's files by name, when the model is not to be found there by itself."""

    def __init__(
        self, make: MakeEngine, model: str, population: Population, files: Mapping[str, bytes] | None = None
    ) -> None:
        self._make, self._model, self._files, self.population = make, model, files, population
        self._engine: Engine | None = None
        self._rows: int | None = None
        self._digest, self._t = "", 0
        self._told = b""
        self._asked: Asked | None = None
        self._functions: dict[str, Functions] = {}
        self._scorers: dict[str, Scorer] = {}

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "join comes first"
        return self._engine

    def join(
        self,
        expected: tuple[str, ...],
        begin: tuple[str, str, int] | None,
        before: Sequence[Update],
        updates: Sequence[Update],
        sigma: float,
    ) -> Joined:
        """Be what the driver is: load the base, or a saved state, and repeat the updates, those that were not done yet.
        `begin` is the state's file, its digest and its iteration; where it cannot be read, the updates `before` it are
        repeated, too. Raises ModelError.
        """
        who = (versions(), platform.node(), os.getpid())
        if versions() != expected:
            return Joined(*who)
        if self._engine is None:
            self._engine = self._load()
            self.engine.set_sigma(sigma)
            if begin is not None and self.engine.load_state(Path(begin[0]), begin[1], begin[2]):
                self._t = begin[2]
        for update in before:
            self._update(update)
        for update in updates:
            self._update(update)
        self._digest = self.engine.digest()
        described = self.engine.describe()
        model = (described["digest"], described["scope"])
        return Joined(*who, self._digest, model, tuple(self.engine.remarks), self.engine.software)

    def _load(self) -> Engine:
        if self._files is None:
            return self._make(self._model)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self._files.items():
                (Path(folder) / name).write_bytes(content)
            self._files = None
            return self._make(folder)

    def learn(self, payload: bytes) -> None:
        """Packed reward `Functions`; evaluations name them by their key."""
        functions: Functions = unpack(payload)
        self._functions[functions.key] = functions

    def ask(self, payload: bytes) -> None:
        """Packed `Asked`: what the chunks that come next have in common. Unpacked with the first of them, which can say
        what is wrong with it; nobody waits for this call.
        """
        self._told, self._asked = payload, None

    def answer(self, payload: bytes) -> bytes:
        """To a packed `Work`: packed parts of the chunk, with their rewards where they were asked for, the rows at once
        if they were halved since, and the digest of the weights that answered. Raises OutOfMemory, RewardError.
        """
        if self._told and self._asked is None:
            self._asked = _unpacked(self._told, self._functions)
        work = unpack_work(payload, self.population, self._asked)
        halved = None
        parts = self._decode(work)
        if parts is None and self._rows is None:
            at_once = min(work.sampling.rows_at_once or len(work.prompts), len(work.prompts))
            self._rows = halved = max(1, at_once // 2)
            parts = self._decode(work)
        if parts is None:
            raise OutOfMemory(f"out of memory, also with {self._rows} rows at once")
        return pack((pack_parts(parts), halved, self._digest))

    def _decode(self, work: Work) -> list[Part] | None:
        """None: it did not fit into memory."""
        groups: list[Mapping[int, Completion]] = []
        scorer = self._scorer(work.asked)
        scored = ScoredRows(work.rows, work.asked, scorer) if scorer and work.asked else None
        sampling = work.sampling
        if self._rows is not None:
            sampling = replace(sampling, rows_at_once=min(self._rows, sampling.rows_at_once or self._rows))
        try:
            self.engine.become(work.members)
            self.engine.generate(work.prompts, sampling, work.seed, groups.append if scored is None else scored.ended)
        except RewardError:
            raise
        except Exception as e:
            if _is_memory(e):
                return None
            raise
        return [Part(group) for group in groups] if scored is None else scored.parts()

    def _scorer(self, asked: Asked | None) -> Scorer | None:
        """A process beside the engine, started when there is something to score; None: that is done elsewhere."""
        if asked is None or asked.functions is None:
            return None
        key = asked.functions.key
        if key not in self._scorers:
            self._scorers[key] = Scorer(asked.functions, workers=1, timeout=asked.timeout)
        return self._scorers[key]

    def update(self, payload: bytes) -> str:
        """Apply a packed `Update`; the digest behind it."""
        self._update(unpack(payload))
        self._digest = self.engine.digest()
        return self._digest

    def _update(self, update: Update) -> None:
        t, coefficients, rate = update
        if t > self._t:
            self.engine.update(self.population.ask(t), coefficients, rate)
            self._t = t


def _unpacked(payload: bytes, known: Mapping[str, Functions]) -> Asked:
    try:
        return unpack_asked(payload, known)
    except Exception as e:
        raise RewardError(
            f"the dataset's columns cannot be loaded where rewards are scored: {type(e).__name__}: {e}. What they are "
            "made of must be installed on every node; or set reward_workers: 0."
        ) from e


def _is_memory(e: BaseException) -> bool:
    text = f"{type(e).__name__} {e}".lower()
    signs = ("outofmemory", "out of memory", "out of gpu memory", "can't allocate memory")
    return isinstance(e, MemoryError) or any(sign in text for sign in signs)
