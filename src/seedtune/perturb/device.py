"""The centre on the device that holds the live weights, worked on by torch (`noise.gpu`)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..noise import gpu
from ..noise.cpu import Cut, Factors, Step
from ..noise.spec import Key
from .quantised import Quantised
from .store import Store

#: Remarks: the master is not beside the live weights; and the kernels of `noise.fused` cannot be used.
NO_ROOM = (
    "keeps the master in the host's memory: the GPU has no room for it, so members and updates take longer to write"
)
SLOW = "draws noise by torch's own operations, with the same bits, as faster kernels cannot be used"
#: Bytes that are left free on a device: what an update works with for a while, and some air.
_SPARED = 4 << 30


class Device(Store):
    """The master is on the device; where that has no room for it, in pinned memory of the host, from where it comes
    piece by piece.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter | Quantised],
        dtype: torch.dtype,
        *,
        ids: Sequence[int],
        cuts: Sequence[Cut],
        master: torch.dtype | None,
        moments: int = 0,
        live: Sequence[torch.Tensor] | None = None,
    ) -> None:
        super().__init__(parameters, ids, cuts)
        self.device = (live or parameters)[0].device
        sizes = [prod(p.shape) for p in parameters]
        needed = sum(sizes) * ((0 if master is None else master.itemsize) + 4 * moments)
        self.pinned = needed > room(self.device)
        slow = gpu.sums(self.device).why
        self.remarks = (*([NO_ROOM] if self.pinned else []), *([f"{SLOW}: {slow}"] if slow else []))
        self._live: list[torch.Tensor | None] = []
        self.centre: list[torch.Tensor] = []
        for n, parameter in enumerate(parameters):
            if not isinstance(parameter, nn.Parameter):
                assert master is not None, "a quantised weight moves by its master"
                self._live.append(None)
                self.centre.append(self._keep(parameter.values(), master))
                continue
            base = parameter.data
            parameter.data = base.to(self.device, dtype).contiguous() if live is None else live[n].copy_(base)
            flat = parameter.data.view(-1)
            self._live.append(flat)
            self.centre.append(flat if master is None else self._keep(base, master))
        self._m = [self._room(n if moments > 0 else 0).zero_() for n in sizes]
        self._v = [self._room(n if moments > 1 else 0).zero_() for n in sizes]
        self.ranges = gpu.ranges(sizes, cuts)

    def _room(self, size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Memory where the master is."""
        if not self.pinned:
            return torch.empty(size, dtype=dtype, device=self.device)
        return torch.empty(size, dtype=dtype, pin_memory=self.device.type == "cuda")

    def _keep(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A flat copy there."""
        return self._room(tensor.numel(), dtype).copy_(tensor.reshape(-1))

    def perturb(self, scale: float, key: Key) -> None:
        for n, a, b in self.ranges:
            if (live := self._live[n]) is not None:
                gpu.perturb(live[a:b], self.centre[n][a:b], scale, key, self.ids[n], a, self.cuts[n])

    def update(
        self,
        keys: list[Key],
        coefficients: NDArray[np.float32],
        step: Step,
        factors: Sequence[Factors | None],
        rounding: Key | None,
        anchors: Sequence[torch.Tensor],
    ) -> list[tuple[int, float]]:
        def work(n: int, a: int, b: int) -> tuple[int, float]:
            weights, m, v = self.centre[n][a:b], self._m[n][a:b], self._v[n][a:b]
            anchor = anchors[n].view(-1)[a:b] if anchors else None
            how = (step, m, v, anchor, a, factors[n], rounding, self.cuts[n], self.device)
            return n, gpu.update(weights, keys, coefficients, self.ids[n], *how)

        return [work(*part) for part in self.ranges]

    def digest(self, of: Sequence[int]) -> int:
        counted = set(of)
        return sum(self._digest(n, a, b) for n, a, b in self.ranges if n in counted) % 2**64

    def _digest(self, n: int, a: int, b: int) -> int:
        return gpu.digest(self.centre[n][a:b].to(self.device), self.ids[n], a, self.cuts[n])

    def kept(self) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        return [w.view(torch.int32 if w.itemsize == 4 else torch.int16) for w in self.centre], self._m, self._v

    def rounded(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        return self.centre[n].to(dtype).cpu()


def room(device: torch.device) -> float:
    """Bytes that a master may take on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] - _SPARED)
    return float("inf")
