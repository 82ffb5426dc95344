"""Which parameters of a model move."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError, ModelError
from .vectors import vectors

_LINEAR = (nn.Linear, Conv1D)


def select(model: nn.Module, scope: str) -> dict[str, nn.Parameter]:
    """The parameters in `scope`, by canonical name, in the model's order; tied weights appear once.

    * `all`: every floating-point parameter.
    * `linear`: the weight matrices of linear layers, except the output head.
    * anything else: a regular expression, searched in the canonical names.

    Raises ConfigError when the scope is not a regular expression or matches nothing, ModelError when the model holds
    no floating-point parameter in it (quantised weights cannot move in place).
    """
    chosen = _in_scope(model, scope)
    floating = {name: p for name, p in chosen.items() if _floats(p)}
    if not floating:
        kinds = sorted({str(p.dtype) for p in chosen.values()})
        raise ModelError(
            f"every parameter in scope {scope!r} is quantised ({', '.join(kinds)}). Noise could ride along with a "
            "quantised layer, but an update moves its weights, and needs them in full precision. Load the model "
            "unquantised, or choose a scope that is not quantised."
        )
    return floating


def _floats(parameter: nn.Parameter) -> bool:
    return parameter.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _in_scope(model: nn.Module, scope: str) -> dict[str, nn.Parameter]:
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
    return chosen


@dataclass(frozen=True)
class Layers:
    """What of a scope can move low-rank: linear layers by their weight's name, in the model's order; the names of those
    that read the same input; biases and norms, where they are asked for; and the parameters in scope that must be left
    out, with why.
    """

    found: dict[str, nn.Module]
    together: list[list[str]]
    vectors: dict[str, tuple[nn.Module, str]]
    left_out: dict[str, str]


def select_layers(model: PreTrainedModel, scope: str, with_vectors: bool = False) -> Layers:
    """The linear layers whose weights are in `scope`; `with_vectors`, biases and norms in scope too.

    A forward pass of three short rows shows which layers see rows one by one, as members that share a batch need it (in
    a mixture of experts some do not), and which read the same input.

    Raises as `select`, and ConfigError when nothing is left.
    """
    chosen, layers = select(model, scope), linear_layers(model)
    small = {n: v for n, v in vectors(model, layers).items() if n in chosen} if with_vectors else {}
    watched = {name: layers[name] for name in chosen if name in layers}
    seen = _inputs(model, {**watched, **{name: module for name, (module, _) in small.items()}}, rows=3)
    left_out = {n: "quantised: an update needs full precision" for n in _in_scope(model, scope) if n not in chosen}
    for name in chosen:
        if name not in layers and name not in small:
            left_out[name] = "not the weight of a linear layer"
        elif name not in seen:
            left_out[name] = "not used, or used for rows that are regrouped"
    found = {name: layers[name] for name in watched if name in seen}
    if not found:
        raise ConfigError(
            f"scope {scope!r} holds no linear layer that low-rank noise could ride along with. "
            "Use scope: linear, or perturbation: full."
        )
    readers: dict[int, list[str]] = {}
    for name in found:
        readers.setdefault(id(seen[name]), []).append(name)
    together = [names for names in readers.values() if len(names) > 1]
    return Layers(found, together, {name: small[name] for name in small if name in seen}, left_out)


def _inputs(model: PreTrainedModel, layers: dict[str, nn.Module], rows: int) -> dict[str, torch.Tensor]:
    """What each layer is called with, once, in a forward pass of `rows` rows; without those that see other rows."""
    calls: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: calls[name].append(inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        with torch.inference_mode():
            model(input_ids=torch.arange(2 * rows, device=model.device).view(rows, 2), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: xs[0] for name, xs in calls.items() if len(xs) == 1 and xs[0].dim() > 2 and len(xs[0]) == rows}


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers, by their weight's name. Subclasses (quantised layers, adapters) compute something else."""
    return {f"{name}.weight": module for name, module in model.named_modules() if type(module) in _LINEAR}


def _linear_weights(model: nn.Module) -> set[str]:
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return {name for name, module in linear_layers(model).items() if module is not head}
