"""On a CPU vLLM multiplies by packed copies of its weights: they are made anew when the weights have changed.

Imported before vLLM loads a model: vLLM empties the tensors that it has packed, and here they stay, to be written to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from functools import wraps
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers import utils as vllm_layers
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from ..noise import cpu

_pack = vllm_layers.dispatch_cpu_unquantized_gemm


@wraps(_pack)
def _pack_and_keep(layer: nn.Module, remove_weight: bool) -> None:
    _pack(layer, remove_weight=False)


vllm_layers.dispatch_cpu_unquantized_gemm = _pack_and_keep

#: How many threads OpenMP takes, said for one thread; None where its library is not to be found.
_set_threads: Any = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)


def packed_layers(model: nn.Module, moving: Collection[torch.Tensor]) -> list[Any]:
    """The layers that were packed and hold a moving weight, the largest first.

    vLLM packs an embedding that is not the head, too, though it is only looked up: it goes without.
    """
    found: list[Any] = [m for m in model.modules() if hasattr(m, "cpu_linear")]
    layers = [layer for layer in found if getattr(layer, "weight", None) is not None]
    if any(isinstance(layer, ParallelLMHead) for layer in layers):
        for layer in [m for m in layers if type(m) is VocabParallelEmbedding]:
            layer.cpu_linear = nn.functional.linear  # true whatever the weights, if it were used
            layers.remove(layer)
    moved = {_memory(tensor) for tensor in moving}
    return sorted((m for m in layers if _memory(m.weight) in moved), key=lambda m: -m.weight.numel())


def pack(layers: Collection[Any]) -> None:
    """Pack layers anew, on the threads of the noise."""
    if _set_threads is None:
        for layer in layers:
            _pack(layer, remove_weight=False)
    else:
        cpu.parallel(_pack_alone, [(layer,) for layer in layers])


def _pack_alone(layer: nn.Module) -> None:
    """With one thread of OpenMP: a team of this thread's own would go on spinning beside vLLM's."""
    torch.get_num_threads()  # torch sets its own number when a thread first asks, and never again
    _set_threads(1)
    _pack(layer, remove_weight=False)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
