"""Which part of a parameter a device holds, when a model is spread over several ("tensor parallelism")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from ..noise import cpu
from ..noise.cpu import WHOLE, Factors, RowBlock, low_rank_factors
from ..noise.spec import Key


@dataclass(frozen=True)
class Shard:
    """`size` slices of dimension `dim` of a parameter of this `shape`, from `start` on. `counted`: where several
    devices hold the same shard, it is True on one of them, so that sums over devices count the shard once.
    """

    shape: tuple[int, ...]
    dim: int = 0
    start: int = 0
    size: int | None = None
    counted: bool = True

    @property
    def whole(self) -> bool:
        return self.size in (None, self.shape[self.dim])

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of the part."""
        if self.whole or self.size is None:
            return self.shape
        return (*self.shape[: self.dim], self.size, *self.shape[self.dim + 1 :])

    @property
    def row_block(self) -> RowBlock:
        """Where its elements stand in the parameter, so that their noise is the parameter's."""
        if self.whole or self.size is None:
            return WHOLE
        inner = prod(self.shape[self.dim + 1 :])
        return RowBlock(self.size * inner, self.shape[self.dim] * inner, self.start * inner)

    def slice_of(self, whole: torch.Tensor) -> torch.Tensor:
        """The part of a tensor that is held: a view."""
        return whole if self.whole or self.size is None else whole.narrow(self.dim, self.start, self.size)

    def slice_flat(self, flat: torch.Tensor) -> torch.Tensor:
        """The part of a flat tensor of the whole parameter, flat; another tensor as it is."""
        if self.whole or len(flat) != prod(self.shape):
            return flat
        return self.slice_of(flat.view(self.shape)).reshape(-1)

    def factors(self, keys: list[Key], parameter: int, rank: int) -> Factors | None:
        """Of low-rank noise, what this part needs; None for a vector."""
        if len(self.shape) != 2:
            return None
        m, n = self.shape
        a_K, b_K, scale = low_rank_factors(keys, parameter, (m, n), rank)
        if self.whole or self.size is None:
            return Factors(a_K, b_K, scale)
        run = slice(self.start, self.start + self.size)
        if self.dim == 0:
            return Factors(a_K[:, run].copy(), b_K, scale)
        return Factors(a_K, b_K[:, :, run].copy(), scale)


def draw_factors(keys: list[Key], ids: Sequence[int], shards: Sequence[Shard], rank: int) -> list[Factors | None]:
    """The low-rank factors of every parameter; None for vectors, whose noise is full-rank."""

    def work(n: int, *_: int) -> Factors | None:
        return shards[n].factors(keys, ids[n], rank)

    return cpu.parallel(work, [(n, 0, 0) for n in range(len(ids))])


def join(shards: Sequence[Shard], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The whole parameter, from the parts that devices hold (in their shapes, or flat)."""
    if shards[0].whole:
        return parts[0].view(shards[0].shape)
    out = torch.empty(shards[0].shape, dtype=parts[0].dtype)
    for shard, part in zip(shards, parts, strict=True):
        shard.slice_of(out).copy_(part.view(shard.local_shape))
    return out
