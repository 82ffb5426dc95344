"""Noise on a model: which parameters move (`selection`), how members are made of it, one after another (`full_rank`) or
in one batch (`lowrank`), and the center that they surround, with its master weights and its updates.
"""

from .center import Center
from .full_rank import FullRank
from .lowrank.members import LowRank
from .perturbation import INFERENCE_ONLY, PerturbationSpec
from .selection import Selection, select

__all__ = ["INFERENCE_ONLY", "Center", "FullRank", "LowRank", "PerturbationSpec", "Selection", "select"]
