"""Which parameters of a model move, and how."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError, ModelError
from ..utils.arguments import accepted
from .bitsandbytes_layers import QuantizedWeight, quantized_weights
from .checks import FROZEN
from .lowrank.embedding import find_embeddings, is_row_lookup
from .lowrank.vectors import find_vectors
from .perturbation import DTYPES, PerturbationSpec

_LINEAR = (nn.Linear, Conv1D)
_TO_FLOAT = "call model.float() before, and save it so"
#: Why a parameter of double precision does not move.
DOUBLE = f"of float64: {_TO_FLOAT}"


@dataclass(frozen=True)
class Selection:
    """What moves, by canonical name in the model's order (tied weights once); what of the scope does not, with why; and
    the weights of the whole model that bitsandbytes holds quantized.

    Of low rank also where noise is added: in linear layers (a head that is tied to an embedding among them, by the
    embedding's name), embeddings, and biases and norms (module and attribute); which linear layers read the same input;
    and the linear layers that do not move, which gain from being packed as well.
    """

    parameters: dict[str, nn.Parameter | QuantizedWeight]
    skipped: dict[str, str]
    quantized: dict[str, QuantizedWeight]
    linears: dict[str, nn.Module] = field(default_factory=dict)
    embeddings: dict[str, nn.Embedding] = field(default_factory=dict)
    vectors: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    shared_input_groups: list[list[str]] = field(default_factory=list)
    frozen_linears: list[nn.Module] = field(default_factory=list)


def select(model: PreTrainedModel, spec: PerturbationSpec, frozen: Collection[str] = ()) -> Selection:
    """The parameters of `spec.scope`, but for `frozen` ones (of a quantized layer that says nothing):

    * `all`: every floating-point parameter.
    * `linear`: the weight matrices of linear layers, except the output head.
    * anything else: a regular expression, searched in the canonical names.

    Of low rank those that a linear layer or, where they are asked for, an embedding, a bias or a norm can move. A
    forward pass of three short rows shows which layers see rows one by one, as members that share a batch need it (in a
    mixture of experts some do not), and which read the same input.

    Raises ConfigError when the scope is not a regular expression or matches nothing, when no layer of it can move low
    rank, or no embedding where they are asked for; ModelError when an update could move none of its weights, as all
    are quantized or frozen.
    """
    packed = quantized_weights(model)
    linears = {**linear_layers(model), **{name: weight.layer for name, weight in packed.items()}}
    chosen, skipped = _in_scope(model, linears, spec.scope), dict[str, str]()
    for name, parameter in chosen.items():
        if name in frozen and name not in packed:
            skipped[name] = FROZEN
        elif name in packed and not spec.low_rank:
            skipped[name] = "quantized: full-rank noise cannot be added; lowrank can move it"
        elif name in packed and (why := packed[name].skip_reason):
            skipped[name] = why
        elif name not in packed and parameter.dtype == torch.float64:
            skipped[name] = DOUBLE
        elif name not in packed and parameter.dtype not in DTYPES.values():
            skipped[name] = "quantized: an update needs full precision"
    movable = {name: parameter for name, parameter in chosen.items() if name not in skipped}
    if not movable and (still := [name for name, why in skipped.items() if why == FROZEN]):
        raise ModelError(
            f"of {len(chosen)} parameters in scope {spec.scope!r} {len(still)} are frozen (requires_grad is False), "
            "and none of the others can move: set requires_grad to True for what training should move (of all: "
            "model.requires_grad_(True), as after merge_and_unload of PEFT, which freezes), or choose another scope."
        )
    if not movable and DOUBLE in skipped.values():
        raise ModelError(
            f"the weights in scope {spec.scope!r} are of float64, which nothing here computes in: {_TO_FLOAT}."
        )
    if not movable:
        kinds = sorted({str(p.dtype) for p in chosen.values()})
        advice = "" if spec.low_rank else "use perturbation: lowrank, which can move layers of bitsandbytes; or "
        raise ModelError(
            f"every parameter in scope {spec.scope!r} is quantized ({', '.join(kinds)}), and an update needs weights "
            f"in full precision: {advice}load the model unquantized, or choose a scope that is not quantized."
        )
    if spec.low_rank:
        return _select_low_rank(model, spec, movable, skipped, packed, linears)
    return Selection({**movable}, skipped, packed)


def _select_low_rank(
    model: PreTrainedModel,
    spec: PerturbationSpec,
    movable: Mapping[str, nn.Parameter],
    skipped: dict[str, str],
    packed: Mapping[str, QuantizedWeight],
    linears: dict[str, nn.Module],
) -> Selection:
    small = {n: v for n, v in find_vectors(model, linears).items() if n in movable} if spec.lowrank_vectors else {}
    tables = {n: t for n, t in find_embeddings(model).items() if n in movable} if spec.lowrank_embeddings else {}
    linears = linears | {name: head for name, (_, head) in tables.items() if head is not None}
    watched = {name: linears[name] for name in movable if name in linears}
    inputs = _inputs(model, [*watched.values(), *(module for module, _ in [*small.values(), *tables.values()])], rows=3)

    def sees_rows(module: nn.Module) -> bool:
        return module in inputs and inputs[module].dim() > 2

    embedded = {
        name: table
        for name, (table, head) in tables.items()
        if table in inputs and inputs[table].dim() == 2 and is_row_lookup(table) and (head is None or sees_rows(head))
    }
    found = {n: m for n, m in watched.items() if sees_rows(m) and (n in embedded or n not in tables)}
    moving = {name: where for name, where in small.items() if sees_rows(where[0])}
    for name in movable:
        if name in tables and name not in embedded:
            skipped[name] = "not looked up once for every row, or used in other ways as well"
        elif name not in linears and name not in small and name not in tables:
            skipped[name] = "not the weight of a linear layer"
        elif name not in found and name not in moving and name not in embedded:
            skipped[name] = "not used, or used for rows that are regrouped"
    if spec.lowrank_embeddings and not embedded:
        raise ConfigError(
            f"lowrank_embeddings: scope {spec.scope!r} holds no embedding that could move low-rank. Use scope: all, or "
            "leave lowrank_embeddings out."
        )
    if not found and not embedded and not moving:
        raise ConfigError(
            f"scope {spec.scope!r} holds no linear layer that low-rank noise could be added to. "
            "Use scope: linear, or perturbation: full."
        )
    readers: dict[int, list[str]] = {}
    for name, layer in found.items():
        readers.setdefault(id(inputs[layer]), []).append(name)
    used = {*found.values()}
    return Selection(
        {name: packed.get(name) or movable[name] for name in {**found, **embedded, **moving}},
        skipped,
        {**packed},
        found,
        embedded,
        moving,
        [names for names in readers.values() if len(names) > 1],
        [layer for layer in linear_layers(model).values() if layer not in used],
    )


def check_scope(model: PreTrainedModel, scope: str) -> None:
    """Raise ConfigError for a scope that matches no parameter; the model needs no weights for that."""
    _in_scope(model, linear_layers(model), scope)


def _in_scope(model: nn.Module, linears: Mapping[str, nn.Module], scope: str) -> dict[str, nn.Parameter]:
    named = dict(model.named_parameters())
    if scope == "all":
        chosen = named
    elif scope == "linear":
        head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
        chosen = {name: p for name, p in named.items() if linears.get(name, head) is not head}
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


def _inputs(model: PreTrainedModel, modules: Sequence[nn.Module], rows: int) -> dict[nn.Module, torch.Tensor]:
    """What each module is called with in a forward pass of `rows` rows, where that is these rows, once."""
    calls: dict[nn.Module, list[torch.Tensor]] = {module: [] for module in modules}

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], named: Mapping[str, object]) -> None:
        alone = len(inputs) == 1 and not named  # ids: with more beside them it is not a mere lookup
        calls[module].append(inputs[0] if inputs and (alone or inputs[0].is_floating_point()) else torch.empty(0))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in calls]
    try:
        with torch.inference_mode():
            ids = torch.arange(2 * rows, device=model.device).view(rows, 2)
            model(input_ids=ids, **accepted(model.forward, use_cache=False))
    finally:
        for hook in hooks:
            hook.remove()
    return {module: xs[0] for module, xs in calls.items() if len(xs) == 1 and len(xs[0]) == rows}


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers, by their weight's name. Subclasses (quantized layers, adapters) compute something else."""
    return {f"{name}.weight": module for name, module in model.named_modules() if type(module) in _LINEAR}
