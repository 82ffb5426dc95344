"""Low-rank members: the perturbation rides along in the forward pass, so members decode together in one batch.

EGGROLL (Sarkar et al., arXiv 2511.16652): E = A B^T / sqrt(r), and for y = x W^T (W [out, in], A [out, r], B [in, r])

    y_row = x_row W^T + sigma * sign * (x_row B) A^T / sqrt(r).

The base weights are read once for all members. With K the pairs of a batch, the factors of all of them stand side by
side, and `mask` [rows, K r] keeps each row's own: y = x W^T + ((x B_all) * mask) A_all^T, two small products a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError, ModelError
from ..es.population import Member
from ..noise import cpu, spec
from ..noise.cpu import Factors
from ..noise.spec import Key
from .centre import Centre


class LowRank(Centre):
    """Members that share one batch. `layers` are the modules whose weights move, by the weight's name.

    Raises ConfigError when the rank is larger than a weight's smaller side.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, rank: int, **options: Any) -> None:
        parameters = {name: layer.get_parameter("weight") for name, layer in layers.items()}
        for name, parameter in parameters.items():
            if rank > min(parameter.shape):
                raise ConfigError(
                    f"rank {rank} is larger than {name} is wide ({list(parameter.shape)}); use a lower rank."
                )
        super().__init__(parameters, **options)
        self.rank = rank
        self._rides = [_Ride(name, layer) for name, layer in layers.items()]
        self._drawn: list[tuple[int, int]] = []

    def become(self, members: Sequence[Member | None]) -> None:
        pairs = list(dict.fromkeys((m.iteration, m.pair) for m in members if m is not None))
        if not pairs:
            for ride in self._rides:
                ride.mask = None
            return
        if pairs != self._drawn:
            self._draw(pairs)
        mask = torch.zeros(len(members), len(pairs))
        for row, member in enumerate(members):
            if member is not None:
                mask[row, pairs.index((member.iteration, member.pair))] = member.sign
        weight = self.parameters[0]
        mask = mask.repeat_interleave(self.rank, dim=1).to(weight.device, weight.dtype)
        for ride in self._rides:
            ride.mask = mask

    def _draw(self, pairs: list[tuple[int, int]]) -> None:
        """The factors of these pairs, for every layer; sigma / sqrt(r) goes into the one that is applied last."""
        keys = [spec.member_key(self.seed, t, pair) for t, pair in pairs]
        for ride, factors in zip(self._rides, self._factors(keys), strict=True):
            a_all = torch.from_numpy(factors.a_K).permute(1, 0, 2).flatten(1)
            b_all = torch.from_numpy(factors.b_K).permute(2, 0, 1).flatten(1)
            ride.set(a_all, b_all, self.sigma * float(factors.scale))
        self._drawn = pairs

    def _factors(self, keys: list[Key]) -> Sequence[Factors]:
        def work(n: int, *_: int) -> Factors:
            m, k = self.shapes[n]
            return Factors.draw(keys, self.ids[n], (m, k), self.rank)

        return cpu.parallel(work, [(n, 0, 0) for n in range(len(self.names))])


class _Ride:
    """What is added to the output of one layer: a forward hook."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        self.name = name
        self.mask: torch.Tensor | None = None
        self._weight = layer.get_parameter("weight")
        self._transposed = isinstance(layer, Conv1D)  # its weight is [in, out], y = x W
        self._first = self._second = torch.empty(0)
        layer.register_forward_hook(self._add)

    def set(self, a_all: torch.Tensor, b_all: torch.Tensor, scale: float) -> None:
        """a_all [m, K r] and b_all [n, K r] for a weight [m, n]."""
        first, second = (a_all, b_all) if self._transposed else (b_all, a_all)
        device, dtype = self._weight.device, self._weight.dtype
        self._first = first.to(device, dtype).contiguous()
        self._second = (second * scale).T.to(device, dtype).contiguous()

    def _add(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if self.mask is None:
            return output
        x = inputs[0]
        if x.shape[0] != len(self.mask):
            raise ModelError(
                f"{self.name} sees {x.shape[0]} rows where the batch has {len(self.mask)}: this architecture regroups "
                "rows, so members cannot share a batch. Leave the layer out of the scope, or use perturbation: full."
            )
        mask = self.mask.view(len(self.mask), *[1] * (x.dim() - 2), -1)
        return output + ((x @ self._first) * mask) @ self._second
