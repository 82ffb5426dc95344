"""What low-rank noise attaches to the modules of a model, and takes off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...errors import ModelError


class RowAssignment:
    """Which member each row of the next forward pass belongs to: mask [rows, K r], for all modules. None: the center,
    in every row.
    """

    def __init__(self) -> None:
        self.set(None, 1)

    def set(self, mask: torch.Tensor | None, rank: int) -> None:
        self.mask, self.rank = mask, rank
        self._cache: dict[Any, torch.Tensor] = {}

    def mask_for(self, x: torch.Tensor, name: str, num_layers: int = 1) -> torch.Tensor:
        """The mask for inputs x [rows, ..., n] of `num_layers` layers that are computed as one, the first of them
        called `name`: [rows, 1..., num_layers K r]. Raises ModelError when the rows are not those of the batch.
        """
        if self.mask is None or x.shape[0] != len(self.mask):
            raise ModelError(
                f"{name} gets {x.shape[0]} rows where the batch has another number: this architecture regroups rows, "
                "so members cannot share a batch. Leave the layer out of the scope, or use perturbation: full."
            )
        key = (x.dim(), num_layers)
        if key not in self._cache:
            self._cache[key] = _match_dims(self.mask.repeat(1, num_layers), x)
        return self._cache[key]

    def noise_for(self, noise_K: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The noise of each row's member, [rows, 1..., n], for x [rows, ..., n] and noise [K, n] of the pairs."""
        assert self.mask is not None
        key = (id(noise_K), x.dim())
        if key not in self._cache:
            self._cache[key] = _match_dims(self.mask[:, :: self.rank] @ noise_K, x)
        return self._cache[key]


def _match_dims(per_row: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[rows, n] as [rows, 1..., n], with as many dimensions as x."""
    return per_row.view(len(per_row), *[1] * (x.dim() - 2), -1)


class Attachment:
    """Changes the forward pass of modules until it is detached."""

    def __init__(self, assignment: RowAssignment) -> None:
        self.assignment = assignment
        self._undo: list[Callable[[], object]] = []

    def replace_forward(self, module: nn.Module, forward: Callable[..., torch.Tensor]) -> None:
        """Let the module compute by `forward`."""
        before = module.__dict__.get("forward")
        module.forward = forward

        def undo() -> None:
            if before is None:
                del module.forward
            else:
                module.forward = before

        self._undo.append(undo)

    def detach(self) -> None:
        """Give the modules their own forward functions back, and remove the hooks. Detaching again does nothing."""
        while self._undo:
            self._undo.pop()()
