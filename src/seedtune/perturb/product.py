"""y = x W^T + b with the weights laid out for the processor.

On a CPU that multiplies bfloat16, oneDNN can bring W into its own block layout once (as PyTorch's inductor does when it
freezes a model); each product then reads it as it is. Elsewhere this is `torch.nn.functional.linear`.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_onednn = torch.ops.mkldnn


def packs(weight: torch.Tensor) -> bool:
    """Whether packing is known to help: bfloat16, on a CPU that has instructions for it."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    try:
        return bool(
            _onednn._is_mkldnn_bf16_supported() and _onednn._linear_pointwise and _onednn._reorder_linear_weight
        )
    except (AttributeError, RuntimeError):  # not this build of PyTorch
        return False


class Product:
    """A linear map with fixed weights W [out, in] and bias b [out], for x [..., in]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = packs(weight)
        self._weight = _onednn._reorder_linear_weight(weight.contiguous()) if self._packed else weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed:
            out: torch.Tensor = _onednn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return out
        return functional.linear(x, self._weight, self._bias)
