"""Which parameters of a model move."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError, ModelError
from .embedding import by_rows, embeddings
from .quantised import Quantised, quantised
from .vectors import vectors

_LINEAR = (nn.Linear, Conv1D)


def select(model: nn.Module, scope: str) -> dict[str, nn.Parameter]:
    """The parameters in `scope`, by canonical name, in the model's order; tied weights appear once.

    * `all`: every floating-point parameter.
    * `linear`: the weight matrices of linear layers, except the output head.
    * anything else: a regular expression, searched in the canonical names.

    Raises ConfigError when the scope is not a regular expression or matches nothing, ModelError when the model holds
    no floating-point parameter in it (full-rank noise cannot be added to quantised weights).
    """
    chosen, packed = _in_scope(model, scope), quantised(model)
    floating = {name: p for name, p in chosen.items() if _floats(p) and name not in packed}
    if not floating:
        raise _all_quantised(
            chosen, scope, "Use perturbation: lowrank, which can move layers that bitsandbytes quantised; or load"
        )
    return floating


def quantised_in_scope(model: nn.Module, scope: str) -> dict[str, str]:
    """The parameters in scope that `select` leaves out, with why."""
    chosen, packed = _in_scope(model, scope), quantised(model)
    why = "quantised: full-rank noise cannot be added to it; perturbation: lowrank moves layers of bitsandbytes"
    return {name: why for name, p in chosen.items() if name in packed or not _floats(p)}


def _all_quantised(chosen: Mapping[str, nn.Parameter], scope: str, advice: str) -> ModelError:
    kinds = sorted({str(p.dtype) for p in chosen.values()})
    return ModelError(
        f"every parameter in scope {scope!r} is quantised ({', '.join(kinds)}), and an update needs weights in full "
        f"precision. {advice} the model unquantised, or choose a scope that is not quantised."
    )


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
    that read the same input; which of them are quantised; embeddings, biases and norms, where they are asked for; and
    the parameters in scope that must be left out, with why. A head that is tied to one of the embeddings is among the
    layers, by the same name.
    """

    found: dict[str, nn.Module]
    together: list[list[str]]
    quantised: dict[str, Quantised]
    embeddings: dict[str, nn.Embedding]
    vectors: dict[str, tuple[nn.Module, str]]
    left_out: dict[str, str]


def select_layers(
    model: PreTrainedModel, scope: str, with_vectors: bool = False, with_embeddings: bool = False
) -> Layers:
    """The linear layers whose weights are in `scope`; `with_vectors`, biases and norms in scope too; `with_embeddings`,
    embeddings.

    A forward pass of three short rows shows which layers see rows one by one, as members that share a batch need it (in
    a mixture of experts some do not), and which read the same input.

    Raises as `select`, and ConfigError when nothing is left, or no embedding where they are asked for.
    """
    packed, layers = quantised(model), linear_layers(model)
    layers |= {name: weight.layer for name, weight in packed.items()}
    left_out: dict[str, str] = {}
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in (whole := _in_scope(model, scope)).items():
        if name in packed and (why := packed[name].stays):
            left_out[name] = why
        elif name not in packed and not _floats(parameter):
            left_out[name] = "quantised: an update needs full precision"
        else:
            chosen[name] = parameter
    if not chosen:
        raise _all_quantised(whole, scope, "Load")
    small = {n: v for n, v in vectors(model, layers).items() if n in chosen} if with_vectors else {}
    tables = {n: t for n, t in embeddings(model).items() if n in chosen} if with_embeddings else {}
    layers |= {name: head for name, (_, head) in tables.items() if head is not None}
    watched = {name: layers[name] for name in chosen if name in layers}
    modules = [*watched.values(), *(module for module, _ in [*small.values(), *tables.values()])]
    seen = _inputs(model, modules, rows=3)

    def rides(name: str) -> bool:
        return layers[name] in seen and seen[layers[name]].dim() > 2

    looked_up = {
        name: table
        for name, (table, head) in tables.items()
        if table in seen and seen[table].dim() == 2 and by_rows(table) and (head is None or rides(name))
    }
    found = {name: watched[name] for name in watched if rides(name) and (name in looked_up or name not in tables)}
    moving = {name: small[name] for name in small if small[name][0] in seen and seen[small[name][0]].dim() > 2}
    for name in chosen:
        if name in tables and name not in looked_up:
            left_out[name] = "not looked up once for every row, or used in other ways as well"
        elif name not in layers and name not in small and name not in tables:
            left_out[name] = "not the weight of a linear layer"
        elif name not in found and name not in moving and name not in looked_up:
            left_out[name] = "not used, or used for rows that are regrouped"
    if with_embeddings and not looked_up:
        raise ConfigError(
            f"lowrank_embeddings: scope {scope!r} holds no embedding that could move low-rank. Use scope: all, or "
            "leave lowrank_embeddings out."
        )
    if not found and not looked_up:
        raise ConfigError(
            f"scope {scope!r} holds no linear layer that low-rank noise could ride along with. "
            "Use scope: linear, or perturbation: full."
        )
    readers: dict[int, list[str]] = {}
    for name, layer in found.items():
        readers.setdefault(id(seen[layer]), []).append(name)
    together = [names for names in readers.values() if len(names) > 1]
    packed = {name: packed[name] for name in found if name in packed}
    return Layers(found, together, packed, looked_up, moving, left_out)


def _inputs(model: PreTrainedModel, modules: Sequence[nn.Module], rows: int) -> dict[nn.Module, torch.Tensor]:
    """What each module is called with in a forward pass of `rows` rows, where that is these rows, once."""
    calls: dict[nn.Module, list[torch.Tensor]] = {module: [] for module in modules}

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], named: Mapping[str, object]) -> None:
        alone = len(inputs) == 1 and not named  # ids: with more beside them it is not a mere lookup
        calls[module].append(inputs[0] if inputs and (alone or inputs[0].is_floating_point()) else torch.empty(0))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in calls]
    try:
        with torch.inference_mode():
            model(input_ids=torch.arange(2 * rows, device=model.device).view(rows, 2), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {module: xs[0] for module, xs in calls.items() if len(xs) == 1 and len(xs[0]) == rows}


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers, by their weight's name. Subclasses (quantised layers, adapters) compute something else."""
    return {f"{name}.weight": module for name, module in model.named_modules() if type(module) in _LINEAR}


def _linear_weights(model: nn.Module) -> set[str]:
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    layers = {**linear_layers(model), **{name: weight.layer for name, weight in quantised(model).items()}}
    return {name for name, module in layers.items() if module is not head}
