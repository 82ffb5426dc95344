"""Linear layers that bitsandbytes holds quantized, as a QLoRA user loads them: 4 bits (NF4, FP4) or 8 (LLM.int8).

The layer goes on computing from its codes. They are dequantized to float32 for the center's master, and quantized again
after an update. Both happen on the host, so that every device gets the same bits. Quantizing is idempotent: codes that
are dequantized and quantized again are the same, but for scales that were themselves quantized ("double quantization"):
from the first update on they are float32, of the same value.

bitsandbytes is an extra: the user imports it to load such a model, Seedtune never does.
"""

from __future__ import annotations

import copy
import logging
import sys
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError


class Packed(NamedTuple):
    """A quantized weight: codes, and the scales that dequantize them. Never changed in place."""

    codes: torch.Tensor
    scales: Any


class QuantizedWeight(Protocol):
    """The weight [out, in] of one layer. `skip_reason` says why it cannot move, where it cannot; `transposed`: the same
    model has it as [in, out] when it is not quantized.
    """

    layer: nn.Module
    kind: str
    skip_reason: str | None

    @property
    def packed(self) -> Packed:
        """The codes and scales of the layer now."""

    def set_packed(self, packed: Packed) -> None:
        """Let the layer compute with these codes and scales."""

    def dequantize(self, packed: Packed | None = None) -> torch.Tensor:
        """The weight of these codes and scales, by default the layer's own: float32 [out, in], on the CPU."""

    def quantize_from(self, values: torch.Tensor) -> None:
        """Quantize these values, float32 [out, in], into the layer."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def transposed(self) -> bool: ...


class _Layer:
    kind = ""
    skip_reason: str | None = None

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer

    @property
    def shape(self) -> tuple[int, int]:
        return self.layer.out_features, self.layer.in_features

    @property
    def device(self) -> torch.device:
        device: torch.device = self.layer.weight.device
        return device

    @property
    def transposed(self) -> bool:
        return getattr(self.layer, "source_cls", None) is Conv1D


class Linear4bitWeight(_Layer):
    """`Linear4bit`: blocks of codes with a scale each. Raises ModelError when bitsandbytes has changed the scales."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        state = self.layer.weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            raise ModelError(
                "the model has run on this CPU, where bitsandbytes repacks 4-bit layers and rounds their scales, so it "
                "is no longer the base model: load it again, and give it to Seedtune before it runs."
            )
        self.layer.support_avx512bf16_for_cpu = False  # no repacking
        self.kind = state.quant_type
        if state.shape[-1] % state.blocksize:
            self.skip_reason = (
                f"quantized in blocks of {state.blocksize} across its rows, which bitsandbytes misreads on CPUs"
            )

    @property
    def packed(self) -> Packed:
        return Packed(self.layer.weight.data, self.layer.weight.quant_state)

    def set_packed(self, packed: Packed) -> None:
        weight = self.layer.weight
        weight.data, weight.quant_state = packed
        self.layer.quant_state = packed.scales

    def dequantize(self, packed: Packed | None = None) -> torch.Tensor:
        functional = sys.modules["bitsandbytes"].functional
        codes, state = packed or self.packed
        state = copy.deepcopy(state)  # moving it happens in place
        state.to("cpu")
        state.dtype = torch.float32
        out: torch.Tensor = functional.dequantize_4bit(codes.cpu(), state)
        return out

    def quantize_from(self, values: torch.Tensor) -> None:
        functional, old = sys.modules["bitsandbytes"].functional, self.layer.weight.quant_state
        codes, state = functional.quantize_4bit(
            values.cpu(), blocksize=old.blocksize, quant_type=old.quant_type, quant_storage=self.layer.weight.dtype
        )
        state.dtype = old.dtype
        state.to(self.device)
        self.set_packed(Packed(codes.to(self.device), state))


class Linear8bitWeight(_Layer):
    """`Linear8bitLt`: a scale for each row. It keeps codes and scales in its `state` once it has run."""

    kind = "int8"

    @property
    def packed(self) -> Packed:
        state, weight = self.layer.state, self.layer.weight
        return Packed(weight.data, weight.SCB if state.SCB is None else state.SCB)

    def set_packed(self, packed: Packed) -> None:
        state, weight = self.layer.state, self.layer.weight
        weight.data = packed.codes
        state.CB, state.SCB = packed
        weight.CB = weight.SCB = None

    def dequantize(self, packed: Packed | None = None) -> torch.Tensor:
        codes, scales = packed or self.packed
        values: torch.Tensor = codes.cpu().float() * scales.cpu()[:, None] / 127
        return values

    def quantize_from(self, values: torch.Tensor) -> None:
        codes, scales, _ = sys.modules["bitsandbytes"].functional.int8_vectorwise_quant(values.cpu())
        self.set_packed(Packed(codes.to(self.device), scales.to(self.device)))


def quantized_weights(model: nn.Module) -> dict[str, QuantizedWeight]:
    """The layers of bitsandbytes by their weight's name. Raises ModelError as `Linear4bitWeight` does."""
    bitsandbytes = sys.modules.get("bitsandbytes")
    if bitsandbytes is None:
        return {}
    found: dict[str, QuantizedWeight] = {}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and getattr(module.weight, "quant_state", None) is not None:
            found[f"{name}.weight"] = Linear4bitWeight(module)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt) and module.weight.dtype == torch.int8:
            found[f"{name}.weight"] = Linear8bitWeight(module)
    if any(layer.kind == "int8" for layer in found.values()):  # it warns of its casts at every call
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return found


def unquantized_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture with ordinary layers in place of quantized ones, and without weights (on `meta`)."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        made = type(model)(config)
    made.generation_config = copy.deepcopy(model.generation_config)
    return made


def dequantize_model(model: PreTrainedModel) -> None:
    """Replace quantized layers by ordinary ones that hold their dequantized weights, float32.

    Raises ModelError where that is not possible without changing the model in other ways.
    """
    layers = quantized_weights(model)
    if any(weight.skip_reason or weight.transposed for weight in layers.values()):
        raise ModelError(
            "a patch cannot be applied on top of another on this base: its quantized layers have no ordinary "
            "counterpart. Apply one patch at a time."
        )
    for name, weight in layers.items():
        layer: Any = weight.layer
        outs, ins = weight.shape
        made = nn.Linear(ins, outs, bias=False, device="meta")
        made.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
        made.bias = layer.bias
        model.set_submodule(name.removesuffix(".weight"), made)
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if layers and quantizer is not None:
        quantizer.remove_quantization_config(model)
        model.__dict__.pop("_weight_conversions", None)  # how codes were read
