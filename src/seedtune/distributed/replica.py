"""A replica in a process of its own. It exchanges few bytes with the driver: seeds, scalars and tokens.

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

from ..engines.base import Completion, Engine
from ..errors import RewardError
from ..es.population import Population
from ..noise import spec
from ..rewards.scorer import Scorer
from ..rewards.serialize import Functions, load
from ..rollout.chunks import ChunkTask, EvalContext
from ..rollout.collector import ChunkOutput, ChunkScorer
from ..rollout.conversations import generate
from ..rollout.fleet import Update
from ..rollout.reading import read
from ..tools.pool import ToolPool
from .messages import pack, pack_outputs, unpack, unpack_context, unpack_task

#: Makes an engine from a model's name or folder. It must be picklable.
MakeEngine = Callable[[str], Engine]


class OutOfMemory(Exception):
    """A chunk did not fit, nor did it with half the rows at once."""


@dataclass(frozen=True)
class ReplicaHandshake:
    """What a replica reports when it is ready (`digest` of its weights, `remarks` for the user, the `software`
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
        self._packed_context = b""
        self._context: EvalContext | None = None
        self._functions: dict[str, Functions] = {}
        self._scorers: dict[str, Scorer] = {}
        self._pool: ToolPool | None = None

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "join comes first"
        return self._engine

    def join(
        self,
        expected: tuple[str, ...],
        state: tuple[str, str, int] | None,
        updates: Sequence[Update],
        sigma: float,
    ) -> ReplicaHandshake:
        """Reach the driver's center: load the base, or a saved state, and repeat what was not done yet of
        `updates`, which are all. `state` is its file, its digest and how many of them it holds, where it can be read.
        Raises ModelError.
        """
        who = (versions(), platform.node(), os.getpid())
        if versions() != expected:
            return ReplicaHandshake(*who)
        if self._engine is None:
            self._engine = self._load()
            if state is not None and self.engine.load_state(Path(state[0]), state[1], state[2]):
                self._t = updates[state[2] - 1][0]
        self.engine.set_sigma(sigma)
        for update in updates:
            self._update(update)
        self._digest = self.engine.digest()
        described = self.engine.describe()
        model = (described["digest"], described["scope"])
        return ReplicaHandshake(*who, self._digest, model, tuple(self.engine.remarks), self.engine.software)

    def _load(self) -> Engine:
        if self._files is None:
            return self._make(self._model)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self._files.items():
                (Path(folder) / name).write_bytes(content)
            self._files = None
            return self._make(folder)

    def add_functions(self, payload: bytes) -> None:
        """Packed reward `Functions`; contexts name them by their key."""
        functions: Functions = unpack(payload)
        self._functions[functions.key] = functions

    def set_context(self, payload: bytes) -> None:
        """The packed `EvalContext` of the chunks that follow. Unpacked with the first of them, which can say what is
        wrong with it: this call's result is not waited for.
        """
        self._packed_context, self._context = payload, None

    def execute(self, payload: bytes) -> bytes:
        """A packed `ChunkTask`; returns, packed, its outputs (with rewards, where they are scored here), the rows at
        once if they were halved, and the digest of the weights that decoded them. Raises OutOfMemory, RewardError.
        """
        if self._packed_context and self._context is None:
            try:
                self._context = unpack_context(self._packed_context, self._functions)
            except Exception as e:
                raise RewardError(
                    f"the dataset's columns cannot be loaded where rewards are scored: {type(e).__name__}: {e}. What "
                    "they are made of must be installed on every node; or set reward_workers: 0."
                ) from e
        task = unpack_task(payload, self.population, self._context)
        halved = None
        outputs = self._decode(task)
        if outputs is None and self._rows is None:
            at_once = min(task.sampling.rows_at_once or len(task.prompts), len(task.prompts))
            self._rows = halved = max(1, at_once // 2)
            outputs = self._decode(task)
        if outputs is None:
            raise OutOfMemory(f"out of memory, also with {self._rows} rows at once")
        return pack((pack_outputs(outputs, tokens=not task.reads), halved, self._digest))

    def _decode(self, task: ChunkTask) -> list[ChunkOutput] | None:
        """None: it did not fit into memory."""
        groups: list[Mapping[int, Completion]] = []
        scorer = None if task.reads else self._scorer(task.context)
        scored = ChunkScorer(task, task.context, scorer) if scorer and task.context else None
        sampling = task.sampling
        if self._rows is not None:
            sampling = replace(sampling, rows_at_once=min(self._rows, sampling.rows_at_once or self._rows))
        try:
            self.engine.set_members(task.members)
            if task.reads:
                return self._read(replace(task, sampling=sampling))
            on_completions = scored.ended if scored else groups.append
            generate(self.engine, replace(task, sampling=sampling), self._tools(task.context), on_completions)
        except Exception as e:
            if isinstance(e, RewardError) or not _is_memory(e):
                raise
            return None
        return scored.outputs() if scored else [ChunkOutput(group) for group in groups]

    def _read(self, task: ChunkTask) -> list[ChunkOutput]:
        """Given texts, with their rewards: the functions are called where the forward pass runs."""
        outputs: list[ChunkOutput] = []
        assert task.context is not None
        assert task.context.functions is not None
        read(self.engine, task, load(task.context.functions.pickled), outputs.append)
        return outputs

    def _scorer(self, context: EvalContext | None) -> Scorer | None:
        """A process beside the engine, started when there is something to score; None: that is done elsewhere."""
        if context is None or context.functions is None:
            return None
        key = context.functions.key
        if key not in self._scorers:
            self._scorers[key] = Scorer(context.functions, workers=1, timeout=context.timeout)
        return self._scorers[key]

    def _tools(self, context: EvalContext | None) -> ToolPool | None:
        """A process beside the engine that runs tools, where there are some."""
        if context is None or context.tools is None:
            return None
        if self._pool is None:
            self._pool = ToolPool(context.tools, workers=1, timeout=context.tool_timeout)
        return self._pool

    def set_sigma(self, sigma: float) -> None:
        """Members are made with this noise scale from now on."""
        self.engine.set_sigma(sigma)

    def update(self, payload: bytes) -> str:
        """Apply a packed `Update`; the digest behind it."""
        self._update(unpack(payload))
        self._digest = self.engine.digest()
        return self._digest

    def _update(self, update: Update) -> None:
        t, coefficients, learning_rate = update
        if t > self._t:
            self.engine.update(self.population.ask(t), coefficients, learning_rate)
            self._t = t


def _is_memory(e: BaseException) -> bool:
    text = f"{type(e).__name__} {e}".lower()
    signs = ("outofmemory", "out of memory", "out of gpu memory", "can't allocate memory")
    return isinstance(e, MemoryError) or any(sign in text for sign in signs)
