"""The centre in the host's memory, worked on by numba."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..noise import cpu, spec
from ..noise.cpu import NO_WEIGHTS, WHOLE, Cut, Factors, Step, Weights
from ..noise.spec import Key
from .quantised import Quantised
from .store import Store

FORMATS = {torch.float32: cpu.F32, torch.bfloat16: cpu.BF16, torch.float16: cpu.F16}


class Host(Store):
    """The live weights are on the CPU, too; quantised layers may be anywhere."""

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
        self._live: list[Weights] = []
        self.centre: list[Weights] = []
        for n, parameter in enumerate(parameters):
            if not isinstance(parameter, nn.Parameter):
                assert master is not None, "a quantised weight moves by its master"
                self.centre.append(host_weights(parameter.values().to(master).contiguous()))
                self._live.append(NO_WEIGHTS)
                continue
            base = parameter.data
            if master is not None:
                own = base.to("cpu", master, copy=base.dtype != master or dtype == master)
                self.centre.append(host_weights(own.contiguous()))
            parameter.data = base.to(dtype).contiguous() if live is None else live[n].copy_(base)
            self._live.append(host_weights(parameter.data))
            if master is None:
                self.centre.append(self._live[-1])
        empty, sizes = np.empty(0, np.float32), [len(w) for w in self.centre]
        self._m = [np.zeros(n, np.float32) if moments > 0 else empty for n in sizes]
        self._v = [np.zeros(n, np.float32) if moments > 1 else empty for n in sizes]
        self.ranges = cpu.ranges(sizes)
        self._live_ranges = cpu.ranges(len(w) for w in self._live)

    def perturb(self, scale: float, key: Key) -> None:
        def work(n: int, a: int, b: int) -> None:
            live, centre = self._live[n].part(a, b), self.centre[n].part(a, b)
            cpu.perturb(live, centre, scale, key, self.ids[n], a, self.cuts[n])

        cpu.parallel(work, self._live_ranges)

    def update(
        self,
        keys: list[Key],
        coefficients: NDArray[np.float32],
        step: Step,
        factors: Sequence[Factors | None],
        rounding: Key | None,
        anchors: Sequence[torch.Tensor],
    ) -> list[tuple[int, float]]:
        anchor = [host_weights(a) for a in anchors]

        def work(n: int, a: int, b: int) -> tuple[int, float]:
            weights, m, v = self.centre[n].part(a, b), self._m[n][a:b], self._v[n][a:b]
            held = anchor[n].part(a, b) if anchor else NO_WEIGHTS
            how = (step, m, v, held, a, factors[n], rounding, self.cuts[n])
            return n, cpu.update(weights, keys, coefficients, self.ids[n], *how)

        return cpu.parallel(work, self.ranges)

    def digest(self, of: Sequence[int]) -> int:
        return digest_of([self.centre[n] for n in of], [self.ids[n] for n in of], [self.cuts[n] for n in of])

    def kept(self) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        centre = [_tensor(w.bits()) for w in self.centre]
        return centre, [_tensor(m) for m in self._m], [_tensor(v) for v in self._v]

    def rounded(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        out = torch.empty(len(self.centre[n]), dtype=dtype)
        cpu.perturb(host_weights(out), self.centre[n], 0.0, (0, 0), 0)
        return out


def host_weights(tensor: torch.Tensor) -> Weights:
    """The storage of a contiguous CPU tensor, flat, shared, as numba sees it."""
    flat = tensor.detach().view(-1)
    array: NDArray[Any] = (flat if tensor.dtype == torch.float32 else flat.view(torch.uint16)).numpy()
    return Weights.of(array, FORMATS[tensor.dtype])


def digest(parameters: Mapping[str, torch.Tensor | Quantised]) -> str:
    """The digest of whole tensors, in the dtype they have, and of what quantised weights mean, in float32: which model
    this is. Tensors quantised otherwise are left out.
    """
    total = 0
    for name, given in parameters.items():
        tensor = given if isinstance(given, torch.Tensor) else given.values()
        if tensor.dtype in FORMATS:
            total += digest_of([host_weights(tensor.detach().cpu().contiguous())], [spec.parameter_id(name)])
    return f"{total % 2**64:016x}"


def digest_of(weights: Sequence[Weights], ids: Sequence[int], cuts: Sequence[Cut] | None = None) -> int:
    """The 64 bits that the digests of these weights add up to."""

    def work(n: int, a: int, b: int) -> int:
        return cpu.digest(weights[n].part(a, b), ids[n], a, cuts[n] if cuts else WHOLE)

    return sum(cpu.parallel(work, cpu.ranges(len(w) for w in weights))) % 2**64


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """The same memory; patterns of bits as signed integers, which every library knows."""
    signed = {np.dtype(np.uint32): np.int32, np.dtype(np.uint16): np.int16}.get(array.dtype)
    return torch.from_numpy(array if signed is None else array.view(signed))
