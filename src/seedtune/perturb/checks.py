"""What a base model must be before it is perturbed: of finite numbers, and not frozen altogether."""

from __future__ import annotations

from collections.abc import Collection
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import NotFiniteError
from .bitsandbytes_layers import quantized_weights
from .perturbation import DTYPES

#: Why a parameter does not move, in the journal's header; replay freezes those again.
FROZEN = "frozen: requires_grad is False"
_frozen: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def check_finite(model: PreTrainedModel, what: str = "the model is damaged: load another copy of it") -> None:
    """Raises NotFiniteError where a weight is NaN or infinite, or a buffer NaN."""
    packed = quantized_weights(model)  # codes may be stored as any type
    for name, given in [*model.named_parameters(), *model.named_buffers()]:
        tensor = packed[name].dequantize() if name in packed else given
        if tensor.dtype not in DTYPES.values() or not tensor.numel() or tensor.is_meta:
            continue
        low, high = torch.aminmax(tensor.detach())
        wrong = not bool(low.isfinite() & high.isfinite())
        if wrong and (isinstance(given, nn.Parameter) or bool(low.isnan())):
            count = int((~tensor.isfinite()).sum())
            raise NotFiniteError(f"{name} holds {count} of {tensor.numel()} values that are NaN or infinite: {what}.")


def freeze(model: PreTrainedModel) -> Collection[str]:
    """Turn gradients off, which nothing here needs; returns the parameters of which the user had done so.

    Of a model that was given before, with all gradients off since, those of then.
    """
    packed = quantized_weights(model)  # codes have no gradients, whatever the user wants
    named = {name: p for name, p in model.named_parameters() if name not in packed}
    if any(p.requires_grad for p in named.values()) or model not in _frozen:
        _frozen[model] = frozenset(name for name, p in named.items() if not p.requires_grad)
    model.requires_grad_(False)
    return _frozen[model]
