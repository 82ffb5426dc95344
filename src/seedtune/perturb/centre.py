"""The centre of a model: its weights theta, as a master copy from which the live weights are written.

Updates go to the master, so none is lost to the precision of the live weights: it is float32, or bfloat16, half as
large, into which updates are rounded stochastically, so that they arrive on average. `restore="subtract"` keeps none:
the live weights are the centre (see `full`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..es.population import Member
from ..es.update import UpdateRule, directions
from ..noise import cpu, spec
from ..noise.cpu import Factors, Step, Weights
from ..noise.spec import Key
from .device import Device
from .host import Host, digest_of
from .quantised import Packed, Quantised
from .shard import Shard


class Centre:
    """The parameters that move (from `scope.select`), their master, and the update.

    They keep their place in the model; their data is cast to `dtype`, the precision of inference, while the master
    keeps what they held. `keep_base`: the weights as they came are kept too, on the host, for `as_base` and `distance`.

    `live`: tensors of `dtype` that hold the live weights instead, as an engine of its own has them. `shards`: the
    parameters given are these parts of the model's. `store`: who keeps the master and does the arithmetic; default:
    `Host` for live weights on the CPU, else `Device`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter | Quantised],
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
        store: type[Host] | type[Device] | None = None,
    ) -> None:
        self.seed, self.sigma, self.exact = seed, sigma, restore == "exact"
        self.rule = rule or UpdateRule()
        self._master = master
        self.names = list(parameters)
        self.shapes: list[tuple[int, ...]] = [tuple(p.shape) for p in parameters.values()]
        self.shards = list(shards or [Shard(shape) for shape in self.shapes])
        self.ids = [*spec.parameter_ids(self.names, noise).values()]
        self.parameters = list(parameters.values())
        self.steps = 0
        kept = keep_base or self.rule.anchored
        self._base = [_as_it_came(p) for p in self.parameters] if kept else []
        self._anchors = [*self._base_values()] if self.rule.anchored else []
        where = (live or self.parameters)[0].device
        make = store or (Host if where.type == "cpu" else Device)
        self.store = make(
            self.parameters,
            dtype,
            ids=self.ids,
            cuts=[shard.cut for shard in self.shards],
            master=master if self.exact else None,
            moments=self.rule.moments,
            live=live,
        )
        self._watchers: list[Callable[[], None]] = []

    def _base_values(self) -> Iterator[torch.Tensor]:
        """The weights as they came, on the CPU."""
        for parameter, base in zip(self.parameters, self._base, strict=True):
            yield base if isinstance(base, torch.Tensor) else cast(Quantised, parameter).values(base)

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
        try:
            self.show_base()
            yield
        finally:
            self.show_centre()

    def show_base(self) -> None:
        """Write the base model's weights into the live ones."""
        self.restore()
        for parameter, base in zip(self.parameters, self._base, strict=True):
            if isinstance(parameter, nn.Parameter):
                parameter.data.copy_(cast(torch.Tensor, base))
            else:
                parameter.hold(cast(Packed, base))
        self._changed()

    def show_centre(self) -> None:
        """Write the centre, rounded, into the live weights."""
        self.store.write()
        self._changed()

    def distance(self) -> float:
        """The Euclidean distance of the centre from the base model."""
        total = 0.0
        for n, (base, shard) in enumerate(zip(self._base_values(), self.shards, strict=True)):
            if shard.counts:
                step = self.store.rounded(n, torch.float32) - base.view(-1).float()
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
        halved = self.exact and self._master != torch.float32
        rounding = spec.member_key(self.seed, members[0].iteration, 0) if halved else None
        moved = self.store.update(keys, merged, step, self.factors(keys), rounding, self._anchors)
        if self.exact:
            self.store.write()
        self._changed()
        return math.sqrt(math.fsum(squares for n, squares in moved if self.shards[n].counts))

    def factors(self, keys: list[Key]) -> Sequence[Factors | None]:
        """The low-rank factors of every parameter, where noise is low-rank."""
        return [None] * len(self.names)

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
        return f"{self.store.digest(self._counted):016x}"

    @property
    def _counted(self) -> list[int]:
        """Digests of shards add up to that of the whole, each counted once."""
        return [n for n, shard in enumerate(self.shards) if shard.counts]

    def state(self) -> dict[str, torch.Tensor]:
        """All that an update depends on: the centre in full precision and the rule's moments, sharing their memory."""
        self.restore()
        return self.store.state(self.names)

    def state_digest(self, state: Mapping[str, torch.Tensor]) -> str | None:
        """The digest that the centre would have with `state`; None when it is not the state of such a centre."""
        own = self.state()
        if {k: (v.dtype, v.shape) for k, v in state.items()} != {k: (v.dtype, v.shape) for k, v in own.items()}:
            return None
        given, names = [], [self.names[n] for n in self._counted]
        for bits in (state[f"centre/{name}"].numpy() for name in names):
            wide = bits.dtype == np.int32
            given.append(Weights.of(bits.view(np.float32 if wide else np.uint16), cpu.F32 if wide else cpu.BF16))
        cuts = [self.shards[n].cut for n in self._counted]
        return f"{digest_of(given, [self.ids[n] for n in self._counted], cuts):016x}"

    def adopt(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Take over a state that `state_digest` found sound, as it was after `steps` updates."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.steps = steps
        if self.exact:
            self.store.write()
        self._changed()

    def part_of(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a state of the whole model holds of the shards that are here."""
        shards = dict(zip(self.names, self.shards, strict=True))
        return {key: shards[key.partition("/")[2]].part(flat) for key, flat in state.items()}

    def centre(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A parameter of the centre, rounded once to `dtype`, in its own shape, on the CPU."""
        n = self.names.index(name)
        return self.store.rounded(n, dtype).view(self.shapes[n])


def _as_it_came(parameter: nn.Parameter | Quantised) -> torch.Tensor | Packed:
    if isinstance(parameter, nn.Parameter):
        return parameter.detach().cpu().clone(memory_format=torch.contiguous_format)
    return parameter.packed
