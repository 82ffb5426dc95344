"""On a CPU vLLM computes with packed copies of its weights, which are packed again when the weights have changed.

Import this before vLLM loads a model: vLLM empties tensors that it has packed; here they are kept, to be written to.
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

from ...noise import cpu

_pack = vllm_layers.dispatch_cpu_unquantized_gemm


@wraps(_pack)
def _pack_and_keep(layer: nn.Module, remove_weight: bool) -> None:
    _pack(layer, remove_weight=False)


vllm_layers.dispatch_cpu_unquantized_gemm = _pack_and_keep

#: Sets the number of OpenMP threads of the calling thread; None where the library is not found.
_set_threads: Any = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)


def packed_layers(model: nn.Module, moving: Collection[torch.Tensor]) -> list[Any]:
    """The packed layers whose weights move, the largest first.

    vLLM also packs an embedding that is not the head, though it is only looked up: that one is unpacked.
    """
    found: list[Any] = [m for m in model.modules() if hasattr(m, "cpu_linear")]
    layers = [layer for layer in found if getattr(layer, "weight", None) is not None]
    if any(isinstance(layer, ParallelLMHead) for layer in layers):
        for layer in [m for m in layers if type(m) is VocabParallelEmbedding]:
            layer.cpu_linear = nn.functional.linear  # correct for any weights, if it were used
            layers.remove(layer)
    moved = {_memory(tensor) for tensor in moving}
    return sorted((m for m in layers if _memory(m.weight) in moved), key=lambda m: -m.weight.numel())


def pack(layers: Collection[Any]) -> None:
    """Pack layers again, on the threads of the noise."""
    if _set_threads is None:
        for layer in layers:
            _pack(layer, remove_weight=False)
    else:
        cpu.parallel(_pack_alone, [(layer,) for layer in layers])


def _pack_alone(layer: nn.Module) -> None:
    """With one OpenMP thread: a team of this thread's own would keep spinning beside vLLM's."""
    torch.get_num_threads()  # torch sets its own number when a thread first asks, and only then
    _set_threads(1)
    _pack(layer, remove_weight=False)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
