"""What an engine is made of, besides `PerturbationSpec`: settings of a run, by their names (see `ESConfig`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..perturb.perturbation import DTYPES


@dataclass(frozen=True)
class ModelSpec:
    """Which model (a name or a path), and how it is loaded and prompted. The name of a model object is what it calls
    itself.
    """

    model_name_or_path: str
    model_revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "bfloat16"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    skip_special_tokens: bool = True
    max_prompt_length: int | None = None
    stop_strings: Sequence[str] = ()
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_name_or_path", os.fspath(self.model_name_or_path))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The precision of inference."""
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class RuntimeSpec:
    """Where it runs, and with what. `device` is `auto` (a GPU when there is one), `cpu`, `cuda` or `cuda:N`;
    `generation_memory` is in GB.
    """

    device: str = "auto"
    threads: int | None = None
    generation_memory: float | None = None
    generation_batch_size: int | None = None
    vllm_gpu_memory_utilization: float = 0.9
    vllm_tensor_parallel_size: int = 1
    vllm_max_model_length: int | None = None
