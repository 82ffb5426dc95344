"""Who keeps the master of the weights that move, and works on it: `Host` or `Device`, with the same bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..noise.cpu import Cut, Factors, Step
from ..noise.spec import Key
from .quantised import Quantised


class Store(ABC):
    """Keeps the master of `parameters`, in the dtype `master` (None: the live weights are the centre), and as many
    moments as the update's rule asks for. The live weights are the parameters' data in `dtype`, or the tensors `live`;
    a quantised layer is given numbers to quantise. `ids` and `cuts` say which noise is whose.
    """

    #: What the user should know of it, as "keeps the master ...": what takes longer here than it should.
    remarks: tuple[str, ...] = ()

    def __init__(self, parameters: Sequence[nn.Parameter | Quantised], ids: Sequence[int], cuts: Sequence[Cut]) -> None:
        self.parameters, self.ids, self.cuts = parameters, ids, cuts

    def write(self, scale: float = 0.0, key: Key = (0, 0)) -> None:
        """live = round(centre + scale * noise); of quantised layers the centre alone."""
        self.perturb(scale, key)
        for n, parameter in enumerate(self.parameters):
            if not isinstance(parameter, nn.Parameter):
                parameter.write(self.rounded(n, torch.float32).view(parameter.shape))

    def state(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The bits of the centre, as signed integers, which every library knows, and the moments, flat; they share
        their memory.
        """
        held: dict[str, torch.Tensor] = {}
        for kind, tensors in zip(("centre", "first", "second"), self.kept(), strict=True):
            held |= {f"{kind}/{name}": t for name, t in zip(names, tensors, strict=True) if kind == "centre" or len(t)}
        return held

    @abstractmethod
    def perturb(self, scale: float, key: Key) -> None:
        """live = round(centre + scale * noise), but for quantised layers."""

    @abstractmethod
    def update(
        self,
        keys: list[Key],
        coefficients: NDArray[np.float32],
        step: Step,
        factors: Sequence[Factors | None],
        rounding: Key | None,
        anchors: Sequence[torch.Tensor],
    ) -> list[tuple[int, float]]:
        """Apply an update to the centre; parameters and the squares of what they moved."""

    @abstractmethod
    def digest(self, of: Sequence[int]) -> int:
        """The sum of the digests of these parameters."""

    @abstractmethod
    def kept(self) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """Of every parameter the bits of the centre, flat, and the first and second moments, empty where there are
        none.
        """

    @abstractmethod
    def rounded(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        """A parameter of the centre, rounded once to `dtype`, flat, on the CPU."""
