"""Which parameters of a model move."""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError, ModelError

_LINEAR = (nn.Linear, Conv1D)


def select(model: nn.Module, scope: str) -> dict[str, nn.Parameter]:
    """The parameters in `scope`, by canonical name, in the model's order; tied weights appear once.

    * `all`: every floating-point parameter.
    * `linear`: the weight matrices of linear layers, except the output head.
    * anything else: a regular expression, searched in the canonical names.

    Raises ConfigError when the scope is not a regular expression or matches nothing, ModelError when the model holds
    no floating-point parameter in it (quantised weights cannot move in place).
    """
    named = dict(model.named_parameters())
    if scope == "all":
        chosen = named
    elif scope == "linear":
        linear = _linear_weights(model)
        chosen = {name: p for name, p in named.items() if name in linear}
    else:
        try:
            pattern = re.compile(scope)
        except re.error as e:
            raise ConfigError(f"scope {scope!r} is neither 'all', 'linear' nor a regular expression: {e}") from None
        chosen = {name: p for name, p in named.items() if pattern.search(name)}
    if not chosen:
        some = "\n  ".join(list(named)[:12])
        raise ConfigError(f"scope {scope!r} matches none of the model's {len(named)} parameters. Some names:\n  {some}")
    floating = {name: p for name, p in chosen.items() if p.dtype in (torch.float32, torch.bfloat16, torch.float16)}
    if not floating:
        kinds = sorted({str(p.dtype) for p in chosen.values()})
        raise ModelError(
            f"every parameter in scope {scope!r} is quantised ({', '.join(kinds)}), and full-rank noise moves weights "
            "in place. Load the model unquantised, or choose a scope that is not quantised."
        )
    return floating


def select_layers(model: nn.Module, scope: str) -> dict[str, nn.Module]:
    """The linear layers whose weights are in `scope`, by the weight's canonical name: what can move low-rank.

    Raises as `select`, and ConfigError when the scope holds no linear layer.
    """
    chosen = select(model, scope)
    layers = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, _LINEAR)}
    found: dict[str, nn.Module] = {name: layers[name] for name in chosen if name in layers}
    if not found:
        raise ConfigError(
            f"scope {scope!r} holds no linear layer, and low-rank noise is for the weights of linear layers. "
            "Use scope: linear, or perturbation: full."
        )
    return found


def _linear_weights(model: nn.Module) -> set[str]:
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _LINEAR) and module is not head
    }
