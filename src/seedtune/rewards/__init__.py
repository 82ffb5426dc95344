"""Reward functions: found by name, called as TRL calls them, scored in worker processes with a time limit."""

from .function import Batch, Reward, Scores
from .outputs import reads_outputs
from .scorer import Scorer
from .serialize import Functions

__all__ = ["Batch", "Functions", "Reward", "Scorer", "Scores", "reads_outputs"]
