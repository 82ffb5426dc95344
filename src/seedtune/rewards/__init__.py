"""Reward functions: found by name, called as TRL calls them, scored in worker processes with a time limit."""

from .call import Batch, Scores
from .function import Reward
from .outputs import reads_outputs
from .scorer import Scorer
from .serialize import Functions

__all__ = ["Batch", "Functions", "Reward", "Scorer", "Scores", "reads_outputs"]
