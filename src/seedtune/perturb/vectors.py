"""Biases and norms of low-rank members: small enough that every row of a batch has its own, perturbed full-rank.

A bias is added to what its module yields, so its noise is added there too. A norm's weight multiplies: for
`nn.LayerNorm` the noise times the normalised input is added; any other norm computes with a weight [rows, 1, n], which
stands in for its own during the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Seats:
    """Who sits where: mask [rows, K r] of the next forward pass, for all layers. None: the centre, in every row."""

    def __init__(self) -> None:
        self.take(None, 1)

    def take(self, mask: torch.Tensor | None, rank: int) -> None:
        self.mask, self.rank = mask, rank
        self._made: dict[Any, torch.Tensor] = {}

    def like(self, x: torch.Tensor, layers: int) -> torch.Tensor | None:
        """The mask for inputs x [rows, ..., n] of `layers` layers that stand side by side; None when rows differ."""
        if self.mask is None or x.shape[0] != len(self.mask):
            return None
        key = (x.dim(), layers)
        if key not in self._made:
            wide = self.mask.repeat(1, layers)
            self._made[key] = wide.view(len(wide), *[1] * (x.dim() - 2), -1)
        return self._made[key]

    def noise(self, of: Vector, x: torch.Tensor) -> torch.Tensor:
        """The noise of every row's member, [rows, 1..., n], for x [rows, ..., n]."""
        assert self.mask is not None
        key = (id(of), x.dim())
        if key not in self._made:
            rows = self.mask[:, :: self.rank] @ of.noise_K
            self._made[key] = rows.view(len(rows), *[1] * (x.dim() - 2), -1)
        return self._made[key]


class Vector:
    """One bias, or one norm's weight."""

    def __init__(self, module: nn.Module, attribute: str, seats: Seats) -> None:
        self._module, self._attribute, self._seats = module, attribute, seats
        self._own = module.get_parameter(attribute)
        self.noise_K = torch.empty(0)
        if attribute == "bias" or isinstance(module, nn.LayerNorm):
            module.register_forward_hook(self._add)
        else:
            module.register_forward_pre_hook(self._stand_in)
            module.register_forward_hook(self._step_down, always_call=True)

    def set(self, noise_K: torch.Tensor) -> None:
        """sigma * noise of the K pairs, [K, n]."""
        self.noise_K = noise_K.to(self._own.device, self._own.dtype)

    def _add(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if self._seats.mask is None:
            return output
        noise = self._seats.noise(self, output)
        if self._attribute == "bias":
            return output + noise
        assert isinstance(module, nn.LayerNorm)
        return output + functional.layer_norm(inputs[0], module.normalized_shape, eps=module.eps) * noise

    def _stand_in(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._seats.mask is not None:
            module.__dict__[self._attribute] = self._own.data + self._seats.noise(self, inputs[0])

    def _step_down(self, module: nn.Module, *_: Any) -> None:
        module.__dict__.pop(self._attribute, None)


def vectors(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, tuple[nn.Module, str]]:
    """The biases of `layers` (by weight's name), and weights and biases of norms: module and attribute by name."""
    found: dict[str, tuple[nn.Module, str]] = {}
    for name, module in model.named_modules():
        for attribute in ("weight", "bias"):
            parameter = getattr(module, attribute, None)
            if not isinstance(parameter, nn.Parameter) or parameter.dim() != 1:
                continue
            if "norm" in type(module).__name__.lower() or f"{name}.weight" in layers:
                found[f"{name}.{attribute}"] = (module, attribute)
    return found
