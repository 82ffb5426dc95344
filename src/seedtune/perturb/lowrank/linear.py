"""Low-rank noise in linear layers, computed in their forward pass (`members` has the equations)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ...noise.cpu import Factors
from .attachment import Attachment, RowAssignment

_onednn = torch.ops.mkldnn


def can_pack(weight: torch.Tensor) -> bool:
    """Whether packing is known to help: bfloat16, on a CPU that has instructions for it."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    try:
        return bool(
            _onednn._is_mkldnn_bf16_supported() and _onednn._linear_pointwise and _onednn._reorder_linear_weight
        )
    except (AttributeError, RuntimeError):  # not this build of PyTorch
        return False


class PackedLinear:
    """A linear map with fixed weights W [out, in] and bias b [out], for x [..., in]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = can_pack(weight)
        self._weight = _onednn._reorder_linear_weight(weight.contiguous()) if self._packed else weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed:
            out: torch.Tensor = _onednn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return out
        return functional.linear(x, self._weight, self._bias)


class LowRankLinear(Attachment):
    """Replaces the forward pass of layers that read the same input, and adds the members' noise: a down projection
    [K r, in] and an up projection [out, K r] for all pairs.

    The layer that is called first computes the outputs of all; the others return theirs when given the same tensor.
    """

    def __init__(self, layers: Mapping[str, nn.Module], assignment: RowAssignment) -> None:
        super().__init__(assignment)
        self.names, self.layers = list(layers), list(layers.values())
        self._weights = [layer.get_parameter("weight") for layer in self.layers]
        self._transposed = [isinstance(layer, Conv1D) for layer in self.layers]  # weight [in, out], y = x W
        self._outs = [w.shape[1 if t else 0] for w, t in zip(self._weights, self._transposed, strict=True)]
        self._packs = can_pack(self._weights[0])
        self._linear: PackedLinear | None = None
        self._down: PackedLinear | None = None
        self._up = torch.empty(0)
        self._x: torch.Tensor | None = None
        self._ys: tuple[torch.Tensor, ...] = ()
        for n, layer in enumerate(self.layers):
            self.replace_forward(layer, partial(self.forward, n))

    def set(self, factors: Sequence[Factors], sigma: float) -> None:
        """Use the factors of each layer; of no pair: compute as the center."""
        downs, ups = [], []
        for f, transposed in zip(factors, self._transposed, strict=True):
            a_all, b_all = concat_pairs(f)
            down, up = (a_all, b_all) if transposed else (b_all, a_all)
            downs.append(down.T)
            ups.append(up * (sigma * float(f.scale)))
        weight = self._weights[0]
        self._down = PackedLinear(torch.cat(downs).to(weight.device, weight.dtype), None) if downs[0].numel() else None
        self._up = torch.block_diag(*ups).to(weight.device, weight.dtype)
        self.weights_changed()

    def weights_changed(self) -> None:
        self._linear = None

    def pack(self) -> PackedLinear:
        """The product with W, or, where that is packed, with [W, A_all]; kept until weights or noise change."""
        if self._linear is None:
            weights = [w.data.T if t else w.data for w, t in zip(self._weights, self._transposed, strict=True)]
            weight = torch.cat(weights) if len(weights) > 1 else weights[0]
            if self._packs and self._down is not None:
                weight = torch.cat([weight, self._up], dim=1)
            self._linear = PackedLinear(weight, self._bias())
        return self._linear

    def _bias(self) -> torch.Tensor | None:
        given = [b if isinstance(b := layer.bias, torch.Tensor) else None for layer in self.layers]
        if all(b is None for b in given):
            return None
        zeros = self._weights[0].data.new_zeros
        full = [zeros(n) if b is None else b for b, n in zip(given, self._outs, strict=True)]
        return torch.cat(full) if len(full) > 1 else full[0]

    def forward(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        if len(self.layers) == 1:
            return self._compute(x)
        if self._x is not x:
            self._x, self._ys = x, self._compute(x).split(self._outs, dim=-1)
        y = self._ys[layer]
        if layer == len(self.layers) - 1:
            self._x, self._ys = None, ()
        return y

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        """[x, u] [W, A_all]^T, or x W^T + u A_all^T."""
        linear = self.pack()
        if self._down is None:
            return linear(x)
        u = self._down(x) * self.assignment.mask_for(x, self.names[0], len(self.layers))
        if self._packs:
            return linear(torch.cat([x, u], dim=-1))
        return linear(x) + functional.linear(u, self._up)


class LowRankSidePath(Attachment):
    """Noise beside a layer that computes by itself, a quantized one: y = layer(x) + u A_all^T, with the device and the
    dtype of the tensor `like`.
    """

    def __init__(self, name: str, layer: nn.Module, assignment: RowAssignment, like: torch.Tensor) -> None:
        super().__init__(assignment)
        self.names, self._like = [name], like
        self._down: torch.Tensor | None = None
        self._up = torch.empty(0)
        self._layer_forward = layer.forward
        self.replace_forward(layer, self.forward)

    def set(self, factors: Sequence[Factors], sigma: float) -> None:
        """Use the factors; of no pair: compute as the center."""
        a_all, b_all = concat_pairs(factors[0])
        self._down = b_all.T.to(self._like) if b_all.numel() else None
        self._up = (a_all * (sigma * float(factors[0].scale))).to(self._like)

    def pack(self) -> None:
        """Nothing: the layer keeps its own weights."""

    def weights_changed(self) -> None:
        """Nothing is derived from them here."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._layer_forward(x)
        if self._down is None:
            return y
        u = functional.linear(x, self._down) * self.assignment.mask_for(x, self.names[0])
        return y + functional.linear(u, self._up)


def concat_pairs(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """A_all [m, K r] and B_all [n, K r] of K pairs, for a weight [m, n]."""
    a_all = torch.from_numpy(factors.a_K).permute(1, 0, 2).flatten(1)
    b_all = torch.from_numpy(factors.b_K).permute(2, 0, 1).flatten(1)
    return a_all, b_all
