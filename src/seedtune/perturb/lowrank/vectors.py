"""Biases and norms of low-rank members: small enough that every row of a batch has its own, perturbed full-rank.

A bias is added to its module's output, so its noise is added there too. A norm's weight multiplies: for `nn.LayerNorm`
the noise times the normalized input is added; any other norm computes with a weight [rows, 1, n], which replaces its
own during the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .attachment import Attachment, RowAssignment


class LowRankVector(Attachment):
    """One bias, or one norm's weight."""

    def __init__(self, module: nn.Module, attribute: str, assignment: RowAssignment) -> None:
        super().__init__(assignment)
        self._attribute, self._parameter = attribute, module.get_parameter(attribute)
        self._noise_K = torch.empty(0)
        if attribute == "bias" or isinstance(module, nn.LayerNorm):
            hooks = [module.register_forward_hook(self._add_noise)]
        else:
            hooks = [
                module.register_forward_pre_hook(self._replace_weight),
                module.register_forward_hook(self._put_back, always_call=True),
            ]
        self._undo += [hook.remove for hook in hooks]

    def set(self, noise_K: torch.Tensor) -> None:
        """Use sigma * noise of the K pairs, [K, n]."""
        self._noise_K = noise_K.to(self._parameter.device, self._parameter.dtype)

    def _add_noise(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if self.assignment.mask is None:
            return output
        noise = self.assignment.noise_for(self._noise_K, output)
        if self._attribute == "bias":
            return output + noise
        assert isinstance(module, nn.LayerNorm)
        return output + functional.layer_norm(inputs[0], module.normalized_shape, eps=module.eps) * noise

    def _replace_weight(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self.assignment.mask is not None:
            noise = self.assignment.noise_for(self._noise_K, inputs[0])
            module.__dict__[self._attribute] = self._parameter.data + noise

    def _put_back(self, module: nn.Module, *_: Any) -> None:
        module.__dict__.pop(self._attribute, None)


def find_vectors(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, tuple[nn.Module, str]]:
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
