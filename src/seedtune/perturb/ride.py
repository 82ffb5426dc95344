"""What members add to a linear layer: their noise rides along in its forward pass (`lowrank` has the equations)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from ..noise.cpu import Factors
from .product import Product, packs
from .vectors import Seats


class Ride:
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
            a_all, b_all = side_by_side(f)
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
        u = self._narrow(x) * mask_of(x, self._seats, self.names[0], len(self.layers))
        if self._packs:
            return product(torch.cat([x, u], dim=-1))
        return product(x) + functional.linear(u, self._second)


class Beside:
    """Noise beside a layer that computes by itself, a quantised one: y = layer(x) + u A_all^T."""

    def __init__(self, name: str, layer: nn.Module, seats: Seats, like: torch.Tensor) -> None:
        self.names, self._seats, self._like = [name], seats, like
        self._first: torch.Tensor | None = None
        self._second = torch.empty(0)
        self._plain = layer.forward
        layer.forward = self.forward

    def set(self, factors: Sequence[Factors], sigma: float) -> None:
        """Take the factors; of no pair: be the centre."""
        a_all, b_all = side_by_side(factors[0])
        self._first = b_all.T.to(self._like) if b_all.numel() else None
        self._second = (a_all * (sigma * float(factors[0].scale))).to(self._like)

    def lay_out(self) -> None:
        """Nothing: the layer keeps its own."""

    def weights_changed(self) -> None:
        """Nothing is made of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._plain(x)
        if self._first is None:
            return y
        u = functional.linear(x, self._first) * mask_of(x, self._seats, self.names[0])
        return y + functional.linear(u, self._second)


def side_by_side(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """A_all [m, K r] and B_all [n, K r] of K pairs, for a weight [m, n]."""
    a_all = torch.from_numpy(factors.a_K).permute(1, 0, 2).flatten(1)
    b_all = torch.from_numpy(factors.b_K).permute(2, 0, 1).flatten(1)
    return a_all, b_all


def mask_of(x: torch.Tensor, seats: Seats, name: str, layers: int = 1) -> torch.Tensor:
    """Who sits where, for x [rows, ..., n]. Raises ModelError when the rows are not those of the batch."""
    mask = seats.like(x, layers)
    if mask is None:
        raise ModelError(
            f"{name} sees {x.shape[0]} rows where the batch has another number: this architecture regroups rows, so "
            "members cannot share a batch. Leave the layer out of the scope, or use perturbation: full."
        )
    return mask
