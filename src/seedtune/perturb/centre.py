"""The centre of a model: its weights theta, as a master copy from which the live weights are written.

Updates go to the master, so none is lost to the precision of the live weights: it is float32, or bfloat16, half as
large, into which updates are rounded stochastically, so that they arrive on average. `restore="subtract"` keeps none:
the live weights are the centre (see `full`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..es.population import Member
from ..es.update import UpdateRule, directions
from ..noise import cpu, spec
from ..noise.cpu import NO_WEIGHTS, WHOLE, Cut, Factors, Step, Weights
from ..noise.spec import Key
from .shard import Shard

FORMATS = {torch.float32: cpu.F32, torch.bfloat16: cpu.BF16, torch.float16: cpu.F16}


class Centre:
    """The parameters that move (from `scope.select`), their master, and the update.

    They keep their place in the model; their data is cast to `dtype`, the precision of inference, while the master
    keeps what they held. Live weights that are not on the CPU are written by way of a host buffer. `keep_base`: the
    weights as they came are kept too, for `as_base` and `distance`.

    `live`: tensors of `dtype` that hold the live weights instead, as an engine of its own has them. `shards`: the
    parameters given are these parts of the model's.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        seed: int,
        sigma: float,
        dtype: torch.dtype,
        noise: str = "iid",
        restore: str = "exact",
        rule: UpdateRule | None = None,
        keep_base: bool = False,
        master: torch.dtype = torch.float32,
        live: Sequence[torch.Tensor] | None = None,
        shards: Sequence[Shard] | None = None,
    ) -> None:
        self.seed, self.sigma, self.exact = seed, sigma, restore == "exact"
        self.rule = rule or UpdateRule()
        self._master = master
        self.names = list(parameters)
        self.shapes = [tuple(p.shape) for p in parameters.values()]
        self.shards = list(shards or [Shard(shape) for shape in self.shapes])
        self._cuts = [shard.cut for shard in self.shards]
        self.ids = [*spec.parameter_ids(self.names, noise).values()]
        self.parameters = list(parameters.values())
        self.steps = 0

        self._live: list[Weights] = []
        self._staging: list[torch.Tensor | None] = []
        self._centre: list[Weights] = []
        self._base: list[torch.Tensor] = []
        for n, parameter in enumerate(self.parameters):
            if keep_base or self.rule.anchored:
                self._base.append(parameter.detach().cpu().clone(memory_format=torch.contiguous_format))
            self._adopt(parameter, dtype, live[n] if live else None)
        self._anchor = [_host_weights(base) for base in self._base] if self.rule.anchored else []
        empty = np.empty(0, np.float32)
        sizes = [len(w) for w in self._centre]
        self._m = [np.zeros(n, np.float32) if self.rule.moments > 0 else empty for n in sizes]
        self._v = [np.zeros(n, np.float32) if self.rule.moments > 1 else empty for n in sizes]
        self._ranges = cpu.ranges(sizes)
        self._watchers: list[Callable[[], None]] = []

    def _adopt(self, parameter: nn.Parameter, dtype: torch.dtype, live: torch.Tensor | None) -> None:
        base = parameter.data
        if self.exact:
            master = base.to("cpu", self._master, copy=base.dtype != self._master or dtype == self._master)
            self._centre.append(_host_weights(master.contiguous()))
        parameter.data = base.to(dtype).contiguous() if live is None else live.copy_(base)
        if parameter.data.device.type == "cpu":
            self._staging.append(None)
            self._live.append(_host_weights(parameter.data))
        else:
            buffer = torch.empty(parameter.shape, dtype=dtype, pin_memory=torch.cuda.is_available())
            buffer.copy_(parameter.data)
            self._staging.append(buffer)
            self._live.append(_host_weights(buffer))
        if not self.exact:
            self._centre.append(self._live[-1])

    @property
    def moved(self) -> int:
        """How many weights are in scope; of the whole model, where only shards of it are held."""
        return sum(math.prod(shard.shape) for shard in self.shards)

    def become(self, members: Sequence[Member | None]) -> None:
        """Get ready for a batch whose row n is answered by `members[n]`; None is the centre."""
        raise NotImplementedError

    def restore(self) -> None:
        """Be the centre again."""
        raise NotImplementedError

    @property
    def keeps_base(self) -> bool:
        """Whether `as_base` and `distance` are there: the base was kept, and a master to come back from."""
        return bool(self._base) and self.exact

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The live weights are the base model's, rounded to the precision of inference, for a while."""
        self.show_base()
        try:
            yield
        finally:
            self.show_centre()

    def show_base(self) -> None:
        """Write the base model's weights into the live ones."""
        self.restore()
        for parameter, base in zip(self.parameters, self._base, strict=True):
            parameter.data.copy_(base)
        self._changed()

    def show_centre(self) -> None:
        """Write the centre, rounded, into the live weights."""
        self._write_centre()
        self._push()

    def distance(self) -> float:
        """The Euclidean distance of the centre from the base model."""
        total = 0.0
        for weights, base, shard in zip(self._centre, self._base, self.shards, strict=True):
            if shard.counts:
                step = _values(weights) - base.view(-1).float()
                total += float(step.double().square().sum())
        return math.sqrt(total)

    def seat(self, rows: torch.Tensor | None) -> None:
        """Row n of the next forward pass is row `rows[n]` of what `become` was told; None: the same rows."""

    def update(self, members: Sequence[Member], coefficients: NDArray[np.float32], rate: float) -> float:
        """theta <- theta + alpha * (sum of c_n * noise_n, by the rule); returns the Euclidean norm of the step."""
        self.restore()
        self.steps += 1
        pairs, merged = directions(members, coefficients)
        if not pairs and self.rule == UpdateRule():
            return 0.0
        keys = [spec.member_key(self.seed, members[0].iteration, pair) for pair in pairs]
        rule = self.rule
        step = Step(rate, rule.weight_decay, rule.beta1, rule.beta2, rule.epsilon, *rule.corrections(self.steps))
        factors = self.factors(keys)
        halved = self.exact and self._master != torch.float32
        rounding = spec.member_key(self.seed, members[0].iteration, 0) if halved else None

        def work(n: int, a: int, b: int) -> float:
            anchor = self._anchor[n].part(a, b) if self._anchor else NO_WEIGHTS
            weights, m, v = self._centre[n].part(a, b), self._m[n][a:b], self._v[n][a:b]
            how = (step, m, v, anchor, a, factors[n], rounding, self._cuts[n])
            return cpu.update(weights, keys, merged, self.ids[n], *how) * self.shards[n].counts

        moved = cpu.parallel(work, self._ranges)
        if self.exact:
            self._write_centre()
        self._push()
        return math.sqrt(math.fsum(moved))

    def factors(self, keys: list[Key]) -> Sequence[Factors | None]:
        """The low-rank factors of every parameter, where noise is low-rank."""
        return [None] * len(self.names)

    def _write_centre(self) -> None:
        def work(n: int, a: int, b: int) -> None:
            cpu.perturb(self._live[n].part(a, b), self._centre[n].part(a, b), 0.0, (0, 0), self.ids[n], a)

        cpu.parallel(work, self._ranges)

    def _push(self) -> None:
        for parameter, buffer in zip(self.parameters, self._staging, strict=True):
            if buffer is not None:
                parameter.data.copy_(buffer, non_blocking=True)
        self._changed()

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call this whenever the live weights have become others."""
        self._watchers.append(on_change)

    def _changed(self) -> None:
        """The live weights are others now."""
        for tell in self._watchers:
            tell()

    def digest(self) -> str:
        """The digest of the centre, 16 hexadecimal digits: equal on every replica that holds the same bits."""
        self.restore()
        return self._digest_of(self._centre)

    def _digest_of(self, weights: Sequence[Weights]) -> str:
        """Digests of shards add up to that of the whole."""
        counted = [n for n, shard in enumerate(self.shards) if shard.counts]
        cuts = [self._cuts[n] for n in counted]
        return _digest([weights[n] for n in counted], [self.ids[n] for n in counted], cuts)

    def state(self) -> dict[str, torch.Tensor]:
        """All that an update depends on: the centre in full precision and the rule's moments, sharing their memory."""
        self.restore()
        held = {f"centre/{name}": _tensor(w.bits()) for name, w in zip(self.names, self._centre, strict=True)}
        for kind, arrays in (("first", self._m), ("second", self._v)):
            held |= {f"{kind}/{name}": _tensor(a) for name, a in zip(self.names, arrays, strict=True) if len(a)}
        return held

    def state_digest(self, state: Mapping[str, torch.Tensor]) -> str | None:
        """The digest that the centre would have with `state`; None when it is not the state of such a centre."""
        own = self.state()
        if {k: (v.dtype, v.shape) for k, v in state.items()} != {k: (v.dtype, v.shape) for k, v in own.items()}:
            return None
        given = [state[f"centre/{name}"].numpy() for name in self.names]
        weights = [
            Weights.of(bits.view(np.float32) if w.format == cpu.F32 else bits.view(np.uint16), w.format)
            for bits, w in zip(given, self._centre, strict=True)
        ]
        return self._digest_of(weights)

    def adopt(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Take over a state that `state_digest` found sound, as it was after `steps` updates."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.steps = steps
        if self.exact:
            self._write_centre()
        self._push()

    def part_of(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a state of the whole model holds of the shards that are here."""
        shards = dict(zip(self.names, self.shards, strict=True))
        return {key: shards[key.partition("/")[2]].part(flat) for key, flat in state.items()}

    def centre(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A parameter of the centre, rounded once to `dtype`, in its own shape, on the CPU."""
        n = self.names.index(name)
        out = torch.empty(self.shapes[n], dtype=dtype)
        cpu.perturb(_host_weights(out), self._centre[n], 0.0, (0, 0), 0)
        return out


def digest(parameters: Mapping[str, torch.Tensor]) -> str:
    """The digest of whole tensors, in the dtype they have: which model this is. Quantised tensors are left out."""
    held = {name: t.detach().cpu().contiguous() for name, t in parameters.items() if t.dtype in FORMATS}
    return _digest([_host_weights(t) for t in held.values()], [spec.parameter_id(name) for name in held])


def _digest(weights: Sequence[Weights], ids: Sequence[int], cuts: Sequence[Cut] | None = None) -> str:
    def work(n: int, a: int, b: int) -> int:
        return cpu.digest(weights[n].part(a, b), ids[n], a, cuts[n] if cuts else WHOLE)

    return f"{sum(cpu.parallel(work, cpu.ranges(len(w) for w in weights))) % 2**64:016x}"


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """The same memory; patterns of bits as signed integers, which every library knows."""
    signed = {np.dtype(np.uint32): np.int32, np.dtype(np.uint16): np.int16}.get(array.dtype)
    return torch.from_numpy(array if signed is None else array.view(signed))


def _values(weights: Weights) -> torch.Tensor:
    """In float32, flat; a copy where they are not."""
    if weights.format == cpu.F32:
        return torch.from_numpy(weights.values32)
    out = torch.empty(len(weights))
    cpu.perturb(_host_weights(out), weights, 0.0, (0, 0), 0)
    return out


def _host_weights(tensor: torch.Tensor) -> Weights:
    """The storage of a contiguous CPU tensor, flat, shared, as numba sees it."""
    flat = tensor.detach().view(-1)
    array: NDArray[Any] = (flat if tensor.dtype == torch.float32 else flat.view(torch.uint16)).numpy()
    return Weights.of(array, FORMATS[tensor.dtype])
