"""Rollouts: members complete prompts, in chunks that do not depend on who decodes them, and earn rewards."""

from .fleet import Fleet, LocalFleet
from .rollouts import Rollouts
from .runner import ChunkExecutor, Interrupted, LocalExecutor, RolloutJob, RolloutRunner, RolloutSpec

__all__ = [
    "ChunkExecutor",
    "Fleet",
    "Interrupted",
    "LocalExecutor",
    "LocalFleet",
    "RolloutJob",
    "RolloutRunner",
    "RolloutSpec",
    "Rollouts",
]
