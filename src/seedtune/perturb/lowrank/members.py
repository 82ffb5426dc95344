"""Low-rank members: their noise is added in the forward pass, so members decode together in one batch.

EGGROLL (Sarkar et al., arXiv 2511.16652): E = A B^T / sqrt(r), and for y = x W^T (W [out, in], A [out, r], B [in, r])

    y_row = x_row W^T + sigma * sign * (x_row B) A^T / sqrt(r).

The base weights are read once for all members. With K the pairs of a batch, the factors of all of them stand side by
side, and `mask` [rows, K r] keeps each row's own: u = (x B_all) * mask, and

    y = x W^T + u A_all^T = [x, u] [W, A_all]^T,

where the second form is one product with a wider matrix, packed once per iteration (on CPUs; see `linear`).
A quantized W stays as it is, and the noise is added beside it, in the first form.
Embeddings look up rows of A_all in place of the product x B_all (`embedding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ...errors import ConfigError
from ...es.population import CENTER, Member
from ...noise import cpu, spec
from ...noise.cpu import Factors
from ...noise.spec import Key
from ..center import Center
from ..perturbation import PerturbationSpec
from ..selection import Selection
from ..shard import draw_factors
from .attachment import Attachment, RowAssignment
from .embedding import LowRankEmbedding
from .linear import LowRankLinear, LowRankSidePath, can_pack
from .vectors import LowRankVector


class LowRank(Center):
    """Members that share one batch, on a model whose layers were selected for it.

    Raises ConfigError when the rank is larger than a weight's smaller side.
    """

    def __init__(self, selection: Selection, spec: PerturbationSpec, dtype: torch.dtype) -> None:
        for name, parameter in selection.parameters.items():
            if name not in selection.vectors and spec.rank > min(parameter.shape):
                raise ConfigError(
                    f"rank {spec.rank} is larger than {name} is wide ({list(parameter.shape)}); use a lower rank."
                )
        super().__init__(selection.parameters, spec, dtype)
        self.rank = spec.rank
        self._rows = RowAssignment()
        self._like = torch.empty(0, dtype=dtype, device=self.parameters[0].device)
        packed = {name: layer for name, layer in selection.linears.items() if name in selection.quantized}
        self._linears: list[LowRankLinear | LowRankSidePath] = [
            LowRankSidePath(name, layer, self._rows, self._like) for name, layer in packed.items()
        ]
        others = {name: layer for name, layer in selection.linears.items() if name not in packed}
        self._linears += self._make_linears(others, selection.shared_input_groups)
        self._embeddings = [LowRankEmbedding(name, table, self._rows) for name, table in selection.embeddings.items()]
        self._vectors = {
            name: LowRankVector(module, of, self._rows) for name, (module, of) in selection.vectors.items()
        }
        self._frozen = [LowRankLinear({"": layer}, self._rows) for layer in selection.frozen_linears]
        self._pairs: list[tuple[int, int]] = []
        self._mask = torch.empty(0)

    def _make_linears(self, layers: Mapping[str, nn.Module], shared_input: Sequence[list[str]]) -> list[LowRankLinear]:
        """Layers that read the same input become one product where weights are packed: fewer, larger steps."""
        groups = [
            names
            for names in shared_input
            if all(n in layers and can_pack(layers[n].get_parameter("weight")) for n in names)
        ]
        grouped = {name for names in groups for name in names}
        groups += [[name] for name in layers if name not in grouped]
        return [LowRankLinear({name: layers[name] for name in names}, self._rows) for names in groups]

    def detach(self) -> None:
        """Give the model's modules their own forward passes back: it computes as the center, without this object."""
        self.restore()
        attached: list[Attachment] = [*self._linears, *self._frozen, *self._embeddings, *self._vectors.values()]
        for attachment in attached:
            attachment.detach()

    def set_members(self, members: Sequence[Member]) -> None:
        pairs = list(dict.fromkeys((m.iteration, m.pair) for m in members if m != CENTER))
        if pairs != self._pairs:
            self._draw(pairs)
        for linear in [*self._linears, *self._frozen]:
            linear.pack()
        mask = torch.zeros(len(members), len(pairs))
        for row, member in enumerate(members):
            if member != CENTER:
                mask[row, pairs.index((member.iteration, member.pair))] = member.sign
        self._mask = mask.repeat_interleave(self.rank, dim=1).to(self._like)
        self.select_rows(None)

    def select_rows(self, rows: torch.Tensor | None) -> None:
        if self._pairs:
            self._rows.set(self._mask if rows is None else self._mask[rows], self.rank)

    def restore(self) -> None:
        """The weights never left the center; only the noise goes."""
        if self._pairs:
            self._draw([])

    def _draw(self, pairs: list[tuple[int, int]]) -> None:
        """The factors of these pairs, for every layer; sigma / sqrt(r) goes into the one that is applied last."""
        keys = [spec.member_key(self.seed, t, pair) for t, pair in pairs]
        factors = dict(zip(self.names, self.factors(keys), strict=True))
        for linear in self._linears:
            linear.set([f for name in linear.names if (f := factors[name])], self.sigma)
        for embedding in self._embeddings:
            if f := factors[embedding.name]:
                embedding.set(f, self.sigma)
        for name, vector in self._vectors.items():
            vector.set(self.sigma * self._normals(self.names.index(name), keys))
        self._pairs = pairs
        self._rows.set(None, self.rank)

    def factors(self, keys: list[Key]) -> Sequence[Factors | None]:
        return draw_factors(keys, self.ids, self.shards, self.rank)

    def _normals(self, n: int, keys: list[Key]) -> torch.Tensor:
        """Full-rank noise [K, size] of a vector."""
        noise_K = torch.empty(len(keys), *self.shapes[n])
        for noise, key in zip(noise_K, keys, strict=True):
            cpu.normals(noise.numpy(), key, self.ids[n], spec.Purpose.FULL)
        return noise_K

    def _changed(self) -> None:
        super()._changed()
        for linear in self._linears:
            linear.weights_changed()
