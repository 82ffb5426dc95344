"""The algorithm, pure: numbers in, numbers out. No model, no engine, no file."""

from .population import CENTER, Member, Population
from .reliability import Pooled, Variances, mirrored_correlation, variances
from .schedule import SCHEDULES
from .shaping import SHAPINGS, DegenerateRewardsWarning, shape
from .step_size import StepSize, step_kl
from .update import OPTIMIZERS, UpdateRule

__all__ = [
    "CENTER",
    "OPTIMIZERS",
    "SCHEDULES",
    "SHAPINGS",
    "DegenerateRewardsWarning",
    "Member",
    "Pooled",
    "Population",
    "StepSize",
    "UpdateRule",
    "Variances",
    "mirrored_correlation",
    "shape",
    "step_kl",
    "variances",
]
