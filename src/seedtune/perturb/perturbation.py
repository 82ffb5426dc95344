"""How members differ from the center, and how the center moves: what of the settings this room needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..es.update import UpdateRule

#: Precisions by the names that settings have.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class PerturbationSpec:
    """Settings of a run, by their names (see `ESConfig`). `keep_base`: keep a copy of the weights that move, as they
    came; `rule`: what becomes of a search direction.
    """

    perturbation: str = "full"
    scope: str = "all"
    rank: int = 1
    lowrank_vectors: bool = False
    lowrank_embeddings: bool = False
    noise: str = "iid"
    seed: int = 0
    sigma: float = 0.0
    restore: str = "exact"
    master_dtype: str = "float32"
    keep_base: bool = False
    rule: UpdateRule = field(default_factory=UpdateRule)

    @property
    def low_rank(self) -> bool:
        """Whether members share a batch."""
        return self.perturbation == "lowrank"


#: For an engine that only generates and scores: the live weights are the center, and no master is kept.
INFERENCE_ONLY = PerturbationSpec(restore="subtract")
