"""Attention in a decode step (one new token per row) over the KV cache, on a CPU in bfloat16.

PyTorch's kernel processes a few queries at a time and multiplies by the transposed keys, which takes about twice as
long as two batched products with the keys in their own layout (LOG.md). All else goes to transformers' `sdpa`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ...errors import ConfigError

#: The name of `attend` as a model's attention implementation.
IMPLEMENTATION = "seedtune_rows"


def install(model: PreTrainedModel, implementation: str | None = None) -> None:
    """Have a model attend as `implementation` says; None: as it does, but for `attend` in place of `sdpa` on a CPU.

    Raises ConfigError for an implementation that the model, or this machine, does not have.
    """
    if implementation is not None:
        try:
            model.set_attn_implementation(implementation)
        except Exception as e:  # packages that are missing, models that lack it, names that are none
            raise ConfigError(f"attn_implementation: {implementation} cannot be used with this model: {e}") from e
        if (found := model.config._attn_implementation) != implementation:
            raise ConfigError(
                f"attn_implementation: {implementation} cannot be used with this model: it attends by {found!r} only."
            )
    elif model.device.type == "cpu" and model.config._attn_implementation == "sdpa" and _extensible(model):
        AttentionInterface.register(IMPLEMENTATION, attend)
        AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
        model.set_attn_implementation(IMPLEMENTATION)


def _extensible(model: PreTrainedModel) -> bool:
    return bool(getattr(model, "_supports_attention_backend", False))


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """softmax(q K^T) V for query [rows, heads, 1, width], key and value [rows, key heads, columns, width], and a mask
    [rows, 1, 1, columns], True where a column is visible; returns [rows, 1, heads, width].
    """
    rows, heads, tokens, width = query.shape
    plain = attention_mask is not None and attention_mask.dtype == torch.bool and attention_mask.shape[1:3] == (1, 1)
    if tokens > 1 or query.dtype != torch.bfloat16 or not plain or kwargs.get("position_bias") is not None:
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return out
    assert attention_mask is not None
    grouped = query.reshape(rows, key.shape[1], -1, width)  # queries that share a key head
    scale = width**-0.5 if scaling is None else scaling
    products = torch.matmul(key, grouped.transpose(2, 3)).transpose(2, 3)
    scores = products.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale)
    # What masked_fill and softmax do with scores that lie transposed, at half their time; bits are the same.
    most = torch.where(attention_mask, torch.inf, torch.finfo(torch.float32).min)
    probabilities = torch.minimum(scores, most, out=scores).softmax(-1).to(value.dtype)
    return torch.matmul(probabilities, value).view(rows, 1, heads, -1), None
