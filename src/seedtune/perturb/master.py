"""The master copy of the weights that move, and the arithmetic on it, with the same bits wherever that happens:
`CpuMaster` in the host's memory, by numba; `DeviceMaster` on the device of the live weights, by torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..noise import cpu, spec, torch_ops
from ..noise.cpu import NO_WEIGHTS, WHOLE, Factors, Range, RowBlock, Step, Weights
from ..noise.spec import Key
from .bitsandbytes_layers import QuantizedWeight

T = TypeVar("T")

FORMATS = {torch.float32: cpu.F32, torch.bfloat16: cpu.BF16, torch.float16: cpu.F16}

#: Remarks: the master is not beside the live weights; and `noise.triton_kernels` cannot be used.
MASTER_ON_HOST = (
    "keeps the master in the host's memory: the GPU has no room for it, so members and updates take longer to write"
)
SLOW_NOISE = "draws noise by torch's own operations, with the same bits, as faster kernels cannot be used"
#: Bytes that are left free on a device: what an update works with for a while, and a reserve.
_RESERVED = 4 << 30


class _Update(NamedTuple):
    """What of an update is the same for every parameter."""

    keys: list[Key]
    coefficients: NDArray[np.float32]
    step: Step
    rounding: Key | None


class MasterWeights(ABC):
    """Keeps the master of `parameters`, in the dtype `master` (None: the live weights are the center), and as many
    moments as the update's rule asks for. The live weights are the parameters' data in `dtype`, or the tensors `live`;
    a quantized layer is given numbers to quantize. `ids` and `row_blocks` say which noise is whose.

    Work is done in `ranges` of parameters: (parameter, first element, end). `remarks` are what the user should know of
    it, as "keeps the master ...": what takes longer here than it should.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter | QuantizedWeight],
        dtype: torch.dtype,
        *,
        ids: Sequence[int],
        row_blocks: Sequence[RowBlock],
        master: torch.dtype | None,
        moments: int = 0,
        live: Sequence[torch.Tensor] | None = None,
    ) -> None:
        self.parameters, self.ids, self.row_blocks = parameters, ids, row_blocks
        self.device = (live or parameters)[0].device
        sizes = [prod(p.shape) for p in parameters]
        size = sum(sizes) * ((0 if master is None else master.itemsize) + 4 * moments)
        self.pinned, self.remarks = self._choose_memory(size)
        #: The center of every parameter, flat; and its live weights, None for a quantized layer.
        self.weights: list[torch.Tensor] = []
        self._live: list[torch.Tensor | None] = []
        for n, parameter in enumerate(parameters):
            if not isinstance(parameter, nn.Parameter):
                assert master is not None, "a quantized weight moves by its master"
                self.weights.append(self._keep(parameter.dequantize(), master, may_share=True))
                self._live.append(None)
                continue
            base = parameter.data
            own = None if master is None else self._keep(base, master, may_share=dtype != master)
            parameter.data = base.to(self.device, dtype).contiguous() if live is None else live[n].copy_(base)
            flat = parameter.data.view(-1)
            self.weights.append(flat if own is None else own)
            self._live.append(flat)
        self._first_moments = [self._empty(n if moments > 0 else 0, torch.float32).zero_() for n in sizes]
        self._second_moments = [self._empty(n if moments > 1 else 0, torch.float32).zero_() for n in sizes]
        self.ranges = self._split(sizes)

    def write(self, scale: float = 0.0, key: Key = (0, 0)) -> None:
        """live = round(center + scale * noise); of quantized layers the center alone."""
        dense = [r for r in self.ranges if self._live[r[0]] is not None]
        self._map(lambda n, a, b: self._perturb_range(n, a, b, scale, key), dense)
        for n, parameter in enumerate(self.parameters):
            if not isinstance(parameter, nn.Parameter):
                parameter.quantize_from(self.rounded(n, torch.float32).view(parameter.shape))

    def update(
        self,
        keys: list[Key],
        coefficients: NDArray[np.float32],
        step: Step,
        factors: Sequence[Factors | None],
        rounding: Key | None,
        anchors: Sequence[torch.Tensor],
    ) -> list[tuple[int, float]]:
        """Apply an update to the center. Returns, for each range, its parameter and its sum of squared changes."""
        one = _Update(keys, coefficients, step, rounding)

        def work(n: int, a: int, b: int) -> tuple[int, float]:
            anchor = anchors[n].view(-1)[a:b] if anchors else None
            return n, self._update_range(n, a, b, one, factors[n], anchor)

        return self._map(work, self.ranges)

    def digest(self, indices: Sequence[int]) -> int:
        """The sum of the digests of these parameters, modulo 2**64."""
        counted = set(indices)
        return sum(self._map(self._digest_range, [r for r in self.ranges if r[0] in counted])) % 2**64

    def state(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The bits of the center, as signed integers, which every library knows, and the moments, flat; they share
        their memory. A rule without such moments has none here.
        """
        bits = [w.view(torch.int32 if w.itemsize == 4 else torch.int16) for w in self.weights]
        state = {f"center/{name}": w for name, w in zip(names, bits, strict=True)}
        for kind, moments in (("first", self._first_moments), ("second", self._second_moments)):
            state |= {f"{kind}/{name}": m for name, m in zip(names, moments, strict=True) if len(m)}
        return state

    def reset(self, weights: Iterable[torch.Tensor]) -> None:
        """Hold these weights, and no moments."""
        for own, given in zip(self.weights, weights, strict=True):
            own.copy_(given.reshape(-1))
        for moment in [*self._first_moments, *self._second_moments]:
            moment.zero_()

    def rounded(self, n: int, dtype: torch.dtype, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """A copy of (a part of) a parameter of the center, rounded once to `dtype`, flat, on the CPU."""
        part = self.weights[n][begin:end]
        return torch.empty(len(part), dtype=dtype).copy_(part)

    def _choose_memory(self, size: int) -> tuple[bool, tuple[str, ...]]:
        """Whether `size` bytes of masters and moments go to pinned memory of the host; and remarks."""
        return False, ()

    @abstractmethod
    def _empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory where the master is."""

    @abstractmethod
    def _keep(self, tensor: torch.Tensor, dtype: torch.dtype, *, may_share: bool) -> torch.Tensor:
        """The tensor in `dtype`, flat, where the master is. It may be the same memory where nothing else uses it."""

    @abstractmethod
    def _split(self, sizes: Sequence[int]) -> list[Range]:
        """Parameters of these sizes as ranges."""

    @abstractmethod
    def _map(self, work: Callable[[int, int, int], T], ranges: Sequence[Range]) -> list[T]:
        """What `work` returns for each of the ranges, in their order."""

    @abstractmethod
    def _perturb_range(self, n: int, a: int, b: int, scale: float, key: Key) -> None: ...

    @abstractmethod
    def _update_range(
        self, n: int, a: int, b: int, update: _Update, factors: Factors | None, anchor: torch.Tensor | None
    ) -> float: ...

    @abstractmethod
    def _digest_range(self, n: int, a: int, b: int) -> int: ...


class CpuMaster(MasterWeights):
    """The live weights are on the CPU, too; quantized layers may be anywhere."""

    @cached_property
    def _numba_weights(self) -> list[Weights]:
        return [as_weights(w) for w in self.weights]

    @cached_property
    def _numba_live(self) -> list[Weights]:
        return [NO_WEIGHTS if live is None else as_weights(live) for live in self._live]

    def _empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype)

    def _keep(self, tensor: torch.Tensor, dtype: torch.dtype, *, may_share: bool) -> torch.Tensor:
        return tensor.to("cpu", dtype, copy=not may_share).contiguous().view(-1)

    def _split(self, sizes: Sequence[int]) -> list[Range]:
        return cpu.ranges(sizes)

    def _map(self, work: Callable[[int, int, int], T], ranges: Sequence[Range]) -> list[T]:
        return cpu.parallel(work, ranges)

    def _perturb_range(self, n: int, a: int, b: int, scale: float, key: Key) -> None:
        live, center = self._numba_live[n].slice(a, b), self._numba_weights[n].slice(a, b)
        cpu.perturb(live, center, scale, key, self.ids[n], a, self.row_blocks[n])

    def _update_range(
        self, n: int, a: int, b: int, update: _Update, factors: Factors | None, anchor: torch.Tensor | None
    ) -> float:
        m, v = self._first_moments[n][a:b].numpy(), self._second_moments[n][a:b].numpy()
        toward = NO_WEIGHTS if anchor is None else as_weights(anchor)
        how = (update.step, m, v, toward, a, factors, update.rounding, self.row_blocks[n])
        return cpu.update(self._numba_weights[n].slice(a, b), update.keys, update.coefficients, self.ids[n], *how)

    def _digest_range(self, n: int, a: int, b: int) -> int:
        return cpu.digest(self._numba_weights[n].slice(a, b), self.ids[n], a, self.row_blocks[n])


class DeviceMaster(MasterWeights):
    """The master is on the device; where that has no room for it, in pinned memory of the host, from where it comes
    piece by piece.
    """

    def _choose_memory(self, size: int) -> tuple[bool, tuple[str, ...]]:
        pinned = size > free_memory(self.device)
        slow = torch_ops.noise_sums(self.device).fallback_reason
        return pinned, (*([MASTER_ON_HOST] if pinned else []), *([f"{SLOW_NOISE}: {slow}"] if slow else []))

    def _empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        if not self.pinned:
            return torch.empty(size, dtype=dtype, device=self.device)
        return torch.empty(size, dtype=dtype, pin_memory=self.device.type == "cuda")

    def _keep(self, tensor: torch.Tensor, dtype: torch.dtype, *, may_share: bool) -> torch.Tensor:
        return self._empty(tensor.numel(), dtype).copy_(tensor.reshape(-1))

    def _split(self, sizes: Sequence[int]) -> list[Range]:
        return torch_ops.ranges(sizes, self.row_blocks)

    def _map(self, work: Callable[[int, int, int], T], ranges: Sequence[Range]) -> list[T]:
        return [work(*each) for each in ranges]

    def _perturb_range(self, n: int, a: int, b: int, scale: float, key: Key) -> None:
        live = self._live[n]
        assert live is not None
        torch_ops.perturb(live[a:b], self.weights[n][a:b], scale, key, self.ids[n], a, self.row_blocks[n])

    def _update_range(
        self, n: int, a: int, b: int, update: _Update, factors: Factors | None, anchor: torch.Tensor | None
    ) -> float:
        m, v = self._first_moments[n][a:b], self._second_moments[n][a:b]
        how = (update.step, m, v, anchor, a, factors, update.rounding, self.row_blocks[n], self.device)
        return torch_ops.update(self.weights[n][a:b], update.keys, update.coefficients, self.ids[n], *how)

    def _digest_range(self, n: int, a: int, b: int) -> int:
        return torch_ops.digest(self.weights[n][a:b].to(self.device), self.ids[n], a, self.row_blocks[n])


def free_memory(device: torch.device) -> float:
    """Bytes that a master may take on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] - _RESERVED)
    return float("inf")


def as_weights(tensor: torch.Tensor) -> Weights:
    """The storage of a contiguous CPU tensor, flat, shared, as numba sees it."""
    flat = tensor.detach().view(-1)
    array: NDArray[Any] = (flat if tensor.dtype == torch.float32 else flat.view(torch.uint16)).numpy()
    return Weights.of(array, FORMATS[tensor.dtype])


def model_digest(parameters: Mapping[str, torch.Tensor | QuantizedWeight]) -> str:
    """The digest of whole tensors, in the dtype they have, and of quantized weights as float32: which model this is.
    Tensors quantized otherwise are left out.
    """
    total = 0
    for name, given in parameters.items():
        tensor = given if isinstance(given, torch.Tensor) else given.dequantize()
        if tensor.dtype in FORMATS:
            total += digest_sum([as_weights(tensor.detach().cpu().contiguous())], [spec.parameter_id(name)], [WHOLE])
    return f"{total % 2**64:016x}"


def digest_sum(weights: Sequence[Weights], ids: Sequence[int], row_blocks: Sequence[RowBlock]) -> int:
    """The sum of the digests of these weights, modulo 2**64."""

    def work(n: int, a: int, b: int) -> int:
        return cpu.digest(weights[n].slice(a, b), ids[n], a, row_blocks[n])

    return sum(cpu.parallel(work, cpu.ranges(len(w) for w in weights))) % 2**64
