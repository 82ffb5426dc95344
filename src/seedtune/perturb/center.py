"""The center of a model: its weights theta, as a master copy from which the live weights are written.

Updates go to the master, so none is lost to the precision of the live weights: it is float32, or bfloat16, half as
large, into which updates are rounded stochastically, so that they arrive on average. `restore="subtract"` keeps none:
the live weights are the center (see `full`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from ..es.population import Member
from ..es.update import UpdateRule, directions
from ..noise import cpu
from ..noise import spec as noise_spec
from ..noise.cpu import Factors, Step, Weights
from ..noise.spec import Key
from .base_copy import BaseCopy
from .bitsandbytes_layers import Packed, QuantizedWeight
from .master import CpuMaster, DeviceMaster, digest_sum
from .perturbation import DTYPES, PerturbationSpec
from .shard import Shard

#: Elements whose differences are computed at once: of an embedding, all would be as large as the model.
_PIECE = 1 << 20


class Center:
    """The parameters that move (`Selection.parameters`), their master, and the update.

    They keep their place in the model; their data is cast to `dtype`, the precision of inference, while the master
    keeps what they held. With `spec.keep_base` the weights as they came are kept too, for `as_base` and `distance`: in
    the host's memory, or, where the live weights are there, on disk.

    `live`: tensors of `dtype` that hold the live weights instead, as an engine of its own has them, in the shapes of
    the parameters. `shards`: the
    parameters given are these parts of the model's. `master`: who keeps the master and does the arithmetic; default:
    `CpuMaster` for live weights on the CPU, else `DeviceMaster`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter | QuantizedWeight],
        spec: PerturbationSpec,
        dtype: torch.dtype,
        *,
        live: Sequence[torch.Tensor] | None = None,
        shards: Sequence[Shard] | None = None,
        master: type[CpuMaster] | type[DeviceMaster] | None = None,
    ) -> None:
        self.seed, self.sigma, self.exact, self.rule = spec.seed, spec.sigma, spec.restore == "exact", spec.rule
        self._master_dtype = DTYPES[spec.master_dtype]
        self.names = list(parameters)
        self.shapes: list[tuple[int, ...]] = [tuple(p.shape) for p in parameters.values()]
        self.shards = list(shards or [Shard(shape) for shape in self.shapes])
        self.ids = [*noise_spec.parameter_ids(self.names, spec.noise).values()]
        self.parameters = list(parameters.values())
        self.steps = 0
        where = (live or self.parameters)[0].device
        kept = spec.keep_base or self.rule.anchored
        self._base = self._as_it_came(on_disk=where.type == "cpu") if kept else []
        self._anchors = [*self._base_values()] if self.rule.anchored else []
        make = master or (CpuMaster if where.type == "cpu" else DeviceMaster)
        self.master = make(
            self.parameters,
            dtype,
            ids=self.ids,
            row_blocks=[shard.row_block for shard in self.shards],
            master=self._master_dtype if self.exact else None,
            moments=self.rule.moments,
            live=live,
        )
        self._on_change: list[Callable[[], None]] = []

    def _as_it_came(self, *, on_disk: bool) -> list[Callable[[], torch.Tensor | Packed]]:
        """What gives each parameter as it is now: from disk, or from the host's memory; of quantized layers the codes,
        which are never changed in place.
        """
        dense = [p.detach() for p in self.parameters if isinstance(p, nn.Parameter)]
        copies: Sequence[torch.Tensor] | BaseCopy = BaseCopy(dense) if on_disk else [_on_host(p) for p in dense]
        numbers = iter(range(len(dense)))
        return [
            partial(copies.__getitem__, next(numbers)) if isinstance(p, nn.Parameter) else partial(_same, p.packed)
            for p in self.parameters
        ]

    def _base_values(self) -> Iterator[torch.Tensor]:
        """The weights as they came, on the CPU, one after another."""
        for parameter, get in zip(self.parameters, self._base, strict=True):
            base = get()
            yield base if isinstance(base, torch.Tensor) else cast(QuantizedWeight, parameter).dequantize(base)

    @property
    def num_perturbed(self) -> int:
        """How many weights are in scope; of the whole model, where only shards of it are held."""
        return sum(math.prod(shard.shape) for shard in self.shards)

    def set_members(self, members: Sequence[Member]) -> None:
        """Get ready for a batch whose row n belongs to `members[n]`."""
        raise NotImplementedError

    def restore(self) -> None:
        """Be the center again."""
        raise NotImplementedError

    def detach(self) -> None:
        """Let go of the model's layers, where members are made within them."""

    @property
    def keeps_base(self) -> bool:
        """Whether `as_base` and `distance` are there: the base was kept, and a master to come back from."""
        return bool(self._base) and self.exact

    def base(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters by name, as they came, on the CPU; those must have been kept."""
        for name, shape, base in zip(self.names, self.shapes, self._base_values(), strict=True):
            yield name, base.view(shape)

    def is_as_exact_as(self, dtypes: Mapping[str, torch.dtype]) -> bool:
        """Whether the master holds parameters of these dtypes without rounding them."""
        return all(self._master_dtype in (torch.float32, dtypes[name]) for name in self.names)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The live weights are the base model's, rounded to the precision of inference, for a while."""
        try:
            self.show_base()
            yield
        finally:
            self.show_center()

    def show_base(self) -> None:
        """Write the base model's weights into the live ones."""
        self.restore()
        for parameter, get in zip(self.parameters, self._base, strict=True):
            if isinstance(parameter, nn.Parameter):
                parameter.data.copy_(cast(torch.Tensor, get()))
            else:
                parameter.set_packed(cast(Packed, get()))
        self._changed()

    def show_center(self) -> None:
        """Write the center, rounded, into the live weights."""
        self.master.write()
        self._changed()

    def reset(self) -> None:
        """Be the base model again, as before the first update; the weights as they came must have been kept. The live
        weights are written from those, not from a master that may hold them rounded.
        """
        self.restore()
        self.master.reset(self._base_values())
        self.steps = 0
        self.show_base()

    def distance(self) -> float:
        """The Euclidean distance of the center from the base model."""
        total = 0.0
        for n, (base, shard) in enumerate(zip(self._base_values(), self.shards, strict=True)):
            for begin in range(0, base.numel() if shard.counted else 0, _PIECE):
                part = base.view(-1)[begin : begin + _PIECE]
                step = self.master.rounded(n, torch.float32, begin, begin + len(part)).sub_(part)
                total += float(step.double().square_().sum())
        return math.sqrt(total)

    def select_rows(self, rows: torch.Tensor | None) -> None:
        """Row n of the next forward pass is row `rows[n]` [rows] of those given to `set_members`; None: all of them."""

    def update(self, members: Sequence[Member], coefficients: NDArray[np.float32], learning_rate: float) -> float:
        """theta <- theta + alpha * (sum of c_n * noise_n, by the rule), with coefficients c [members]; returns the
        Euclidean norm of the step.
        """
        self.restore()
        self.steps += 1
        pairs, merged = directions(members, coefficients)
        if not pairs and self.rule == UpdateRule():
            return 0.0
        keys = [noise_spec.member_key(self.seed, members[0].iteration, pair) for pair in pairs]
        rule = self.rule
        step = Step(
            learning_rate, rule.weight_decay, rule.beta1, rule.beta2, rule.epsilon, *rule.corrections(self.steps)
        )
        halved = self.exact and self._master_dtype != torch.float32
        rounding = noise_spec.member_key(self.seed, members[0].iteration, 0) if halved else None
        moved = self.master.update(keys, merged, step, self.factors(keys), rounding, self._anchors)
        if self.exact:
            self.master.write()
        self._changed()
        return math.sqrt(math.fsum(squares for n, squares in moved if self.shards[n].counted))

    def factors(self, keys: list[Key]) -> Sequence[Factors | None]:
        """The low-rank factors of every parameter, where noise is low-rank."""
        return [None] * len(self.names)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call this whenever the live weights have changed."""
        self._on_change.append(callback)

    def _changed(self) -> None:
        """The live weights have changed."""
        for callback in self._on_change:
            callback()

    def digest(self) -> str:
        """The digest of the center, 16 hexadecimal digits: equal on every replica that holds the same bits."""
        self.restore()
        return f"{self.master.digest(self._counted):016x}"

    @property
    def _counted(self) -> list[int]:
        """Digests of shards add up to that of the whole, each counted once."""
        return [n for n, shard in enumerate(self.shards) if shard.counted]

    def state(self) -> dict[str, torch.Tensor]:
        """All that an update depends on: the center in full precision and the rule's moments, sharing their memory."""
        self.restore()
        return self.master.state(self.names)

    def state_digest(self, state: Mapping[str, torch.Tensor]) -> str | None:
        """The digest that the center would have with `state`; None when it is not the state of such a center."""
        own = self.state()
        if {k: (v.dtype, v.shape) for k, v in state.items()} != {k: (v.dtype, v.shape) for k, v in own.items()}:
            return None
        given, names = [], [self.names[n] for n in self._counted]
        for bits in (state[f"center/{name}"].numpy() for name in names):
            wide = bits.dtype == np.int32
            given.append(Weights.of(bits.view(np.float32 if wide else np.uint16), cpu.F32 if wide else cpu.BF16))
        row_blocks = [self.shards[n].row_block for n in self._counted]
        return f"{digest_sum(given, [self.ids[n] for n in self._counted], row_blocks):016x}"

    def load_state(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Take over a state that `state_digest` found sound, as it was after `steps` updates."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.steps = steps
        if self.exact:
            self.master.write()
        self._changed()

    def shard_state(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a state of the whole model holds of the shards that are here."""
        shards = dict(zip(self.names, self.shards, strict=True))
        return {key: shards[key.partition("/")[2]].slice_flat(flat) for key, flat in state.items()}

    def parameter(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A parameter of the center, rounded once to `dtype`, in its own shape, on the CPU."""
        n = self.names.index(name)
        return self.master.rounded(n, dtype).view(self.shapes[n])


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().clone(memory_format=torch.contiguous_format)


def _same(packed: Packed) -> Packed:
    return packed


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """A state as `Center.state` gave it; also of 0.1.0, which wrote `centre/`. Raises OSError, SafetensorError."""
    return {key.replace("centre/", "center/", 1): tensor for key, tensor in load_file(file).items()}
