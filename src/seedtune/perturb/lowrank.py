"""Low-rank members: the perturbation rides along in the forward pass, so members decode together in one batch.

EGGROLL (Sarkar et al., arXiv 2511.16652): E = A B^T / sqrt(r), and for y = x W^T (W [out, in], A [out, r], B [in, r])

    y_row = x_row W^T + sigma * sign * (x_row B) A^T / sqrt(r).

The base weights are read once for all members. With K the pairs of a batch, the factors of all of them stand side by
side, and `mask` [rows, K r] keeps each row's own: u = (x B_all) * mask, and

    y = x W^T + u A_all^T = [x, u] [W, A_all]^T,

where the second form is one product with a wider matrix, packed once an iteration (on CPUs; see `product`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError, ModelError
from ..es.population import Member
from ..noise import cpu, spec
from ..noise.cpu import Factors
from ..noise.spec import Key
from .centre import Centre
from .product import Product, packs
from .shard import draw_factors
from .vectors import Seats, Vector


class LowRank(Centre):
    """Members that share one batch. `layers` are the modules whose weights move, by the weight's name; `together` names
    those that read the same input; `still` are other linear layers, which gain from being packed; `vectors` are biases
    and norms that move too, with full-rank noise, by name (the module and its attribute).

    Raises ConfigError when the rank is larger than a weight's smaller side.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        rank: int,
        together: Sequence[Sequence[str]] = (),
        still: Sequence[nn.Module] = (),
        vectors: Mapping[str, tuple[nn.Module, str]] | None = None,
        **options: Any,
    ) -> None:
        parameters = {name: layer.get_parameter("weight") for name, layer in layers.items()}
        for name, parameter in parameters.items():
            if rank > min(parameter.shape):
                raise ConfigError(
                    f"rank {rank} is larger than {name} is wide ({list(parameter.shape)}); use a lower rank."
                )
        parameters |= {name: module.get_parameter(of) for name, (module, of) in (vectors or {}).items()}
        super().__init__(parameters, **options)
        self.rank = rank
        self._seats = Seats()
        self._rides = self._make_rides(layers, together)
        self._vectors = {name: Vector(module, of, self._seats) for name, (module, of) in (vectors or {}).items()}
        self._still = [_Ride({"": layer}, self._seats) for layer in still]
        self._drawn: list[tuple[int, int]] = []
        self._mask = torch.empty(0)

    def _make_rides(self, layers: Mapping[str, nn.Module], together: Sequence[Sequence[str]]) -> list[_Ride]:
        """Layers that read the same input become one product where weights are packed: fewer, larger steps."""
        groups = [names for names in together if all(packs(layers[n].get_parameter("weight")) for n in names)]
        grouped = {name for names in groups for name in names}
        groups += [[name] for name in layers if name not in grouped]
        return [_Ride({name: layers[name] for name in names}, self._seats) for names in groups]

    def become(self, members: Sequence[Member | None]) -> None:
        pairs = list(dict.fromkeys((m.iteration, m.pair) for m in members if m is not None))
        if pairs != self._drawn:
            self._draw(pairs)
        for ride in [*self._rides, *self._still]:
            ride.lay_out()
        mask = torch.zeros(len(members), len(pairs))
        for row, member in enumerate(members):
            if member is not None:
                mask[row, pairs.index((member.iteration, member.pair))] = member.sign
        weight = self.parameters[0]
        self._mask = mask.repeat_interleave(self.rank, dim=1).to(weight.device, weight.dtype)
        self.seat(None)

    def seat(self, rows: torch.Tensor | None) -> None:
        if self._drawn:
            self._seats.take(self._mask if rows is None else self._mask[rows], self.rank)

    def restore(self) -> None:
        """The weights never left the centre; only the noise goes."""
        if self._drawn:
            self._draw([])

    def _draw(self, pairs: list[tuple[int, int]]) -> None:
        """The factors of these pairs, for every layer; sigma / sqrt(r) goes into the one that is applied last."""
        keys = [spec.member_key(self.seed, t, pair) for t, pair in pairs]
        factors = dict(zip(self.names, self.factors(keys), strict=True))
        for ride in self._rides:
            ride.set([f for name in ride.names if (f := factors[name])], self.sigma)
        for name, vector in self._vectors.items():
            vector.set(self.sigma * self._normals(self.names.index(name), keys))
        self._drawn = pairs
        self._seats.take(None, self.rank)

    def factors(self, keys: list[Key]) -> Sequence[Factors | None]:
        return draw_factors(keys, self.ids, self.shards, self.rank)

    def _normals(self, n: int, keys: list[Key]) -> torch.Tensor:
        """Full-rank noise [K, size] of a vector."""
        noise_K = torch.empty(len(keys), *self.shapes[n])
        for noise, key in zip(noise_K, keys, strict=True):
            cpu.normals(noise.numpy(), key, self.ids[n], spec.Purpose.FULL)
        return noise_K

    def _changed(self) -> None:
        super()._changed()
        for ride in self._rides:
            ride.weights_changed()


class _Ride:
    """Stands in for the forward pass of layers that read the same input, and adds the members' noise.

    The layer that is called first computes the outputs of all; the others find theirs, when they bring the same tensor.
    """

    def __init__(self, layers: Mapping[str, nn.Module], seats: Seats) -> None:
        self.names, self.layers, self._seats = list(layers), list(layers.values()), seats
        self._weights = [layer.get_parameter("weight") for layer in self.layers]
        self._transposed = [isinstance(layer, Conv1D) for layer in self.layers]  # weight [in, out], y = x W
        self._outs = [w.shape[1 if t else 0] for w, t in zip(self._weights, self._transposed, strict=True)]
        self._packs = packs(self._weights[0])
        self._product: Product | None = None
        self._narrow: Product | None = None
        self._second = torch.empty(0)
        self._x: torch.Tensor | None = None
        self._ys: tuple[torch.Tensor, ...] = ()
        for n, layer in enumerate(self.layers):
            layer.forward = partial(self.forward, n)

    def set(self, factors: Sequence[Factors], sigma: float) -> None:
        """Take the factors of each layer; of no pair: be the centre."""
        firsts, seconds = [], []
        for f, transposed in zip(factors, self._transposed, strict=True):
            a_all = torch.from_numpy(f.a_K).permute(1, 0, 2).flatten(1)  # [m, K r] for a weight [m, n]
            b_all = torch.from_numpy(f.b_K).permute(2, 0, 1).flatten(1)  # [n, K r]
            first, second = (a_all, b_all) if transposed else (b_all, a_all)
            firsts.append(first.T)
            seconds.append(second * (sigma * float(f.scale)))
        like = self._weights[0]
        self._narrow = Product(torch.cat(firsts).to(like.device, like.dtype), None) if firsts[0].numel() else None
        self._second = torch.block_diag(*seconds).to(like.device, like.dtype)
        self.weights_changed()

    def weights_changed(self) -> None:
        self._product = None

    def lay_out(self) -> Product:
        """The product with W, or, where that is packed, with [W, A_all]; kept until weights or noise change."""
        if self._product is None:
            weights = [w.data.T if t else w.data for w, t in zip(self._weights, self._transposed, strict=True)]
            weight = torch.cat(weights) if len(weights) > 1 else weights[0]
            if self._packs and self._narrow is not None:
                weight = torch.cat([weight, self._second], dim=1)
            self._product = Product(weight, self._bias())
        return self._product

    def _bias(self) -> torch.Tensor | None:
        given = [b if isinstance(b := layer.bias, torch.Tensor) else None for layer in self.layers]
        if all(b is None for b in given):
            return None
        zeros = self._weights[0].data.new_zeros
        full = [zeros(n) if b is None else b for b, n in zip(given, self._outs, strict=True)]
        return torch.cat(full) if len(full) > 1 else full[0]

    def forward(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        if len(self.layers) == 1:
            return self._together(x)
        if self._x is not x:
            self._x, self._ys = x, self._together(x).split(self._outs, dim=-1)
        y = self._ys[layer]
        if layer == len(self.layers) - 1:
            self._x, self._ys = None, ()
        return y

    def _together(self, x: torch.Tensor) -> torch.Tensor:
        """[x, u] [W, A_all]^T, or x W^T + u A_all^T."""
        product = self.lay_out()
        if self._narrow is None:
            return product(x)
        mask = self._seats.like(x, len(self.layers))
        if mask is None:
            raise ModelError(
                f"{self.names[0]} sees {x.shape[0]} rows where the batch has another number: this architecture "
                "regroups rows, so members cannot share a batch. Leave the layer out of the scope, or use "
                "perturbation: full."
            )
        u = self._narrow(x) * mask
        if self._packs:
            return product(torch.cat([x, u], dim=-1))
        return product(x) + functional.linear(u, self._second)
