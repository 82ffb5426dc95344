"""The settings of a run that chooses its own steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What a run takes that says nothing about members and steps: it measures its steps itself.
AUTO: dict[str, Any] = {
    "perturbation": "lowrank",
    "population_size": 64,
    "antithetic": True,
    "prompts_per_member": 2,
    "fitness_shaping": "pairs",
    "sigma": "auto",
    "learning_rate": "auto",
}
#: Settings that leave nothing of that.
_SAYS_HOW = (
    *AUTO, "prompts_per_step", "rank", "scope", "noise", "restore", "optimizer", "lr_scheduler_type", "sigma_schedule",
    "lowrank_vectors", "lowrank_embeddings",
)  # fmt: skip


def with_auto(values: Mapping[str, Any]) -> dict[str, Any]:
    """These settings, and `AUTO`, where they say nothing about members and steps."""
    return {**({} if any(key in values for key in _SAYS_HOW) else AUTO), **values}
