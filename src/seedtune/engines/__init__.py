"""Engines decode, score given texts, and hold the center: `base` has the protocols, `hf` and `vllm` are two of them."""

from .base import Completion, Engine, Generator, Prompt, Sampling, TextScorer, Weights
from .hf.engine import HFEngine
from .specs import ModelSpec, RuntimeSpec

__all__ = [
    "Completion",
    "Engine",
    "Generator",
    "HFEngine",
    "ModelSpec",
    "Prompt",
    "RuntimeSpec",
    "Sampling",
    "TextScorer",
    "Weights",
]
