"""How good a model is, and how far it moved: given an engine and prompts; builds nothing itself."""

from .evaluate import EvalSpec, Evaluation, evaluate
from .statistics import Estimate

__all__ = ["Estimate", "EvalSpec", "Evaluation", "evaluate"]
