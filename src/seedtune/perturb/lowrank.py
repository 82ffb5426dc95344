"""Low-rank members: the perturbation rides along in the forward pass, so members decode together in one batch.

EGGROLL (Sarkar et al., arXiv 2511.16652): E = A B^T / sqrt(r), and for y = x W^T (W [out, in], A [out, r], B [in, r])

    y_row = x_row W^T + sigma * sign * (x_row B) A^T / sqrt(r).

The base weights are read once for all members. With K the pairs of a batch, the factors of all of them stand side by
side, and `mask` [rows, K r] keeps each row's own: u = (x B_all) * mask, and

    y = x W^T + u A_all^T = [x, u] [W, A_all]^T,

where the second form is one product with a wider matrix, packed once an iteration (on CPUs; see `ride`, `product`).
A quantised W stays as it is, and the noise is added beside it, in the first form.
Embeddings look up rows of A_all in place of the product x B_all (`embedding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..es.population import Member
from ..noise import cpu, spec
from ..noise.cpu import Factors
from ..noise.spec import Key
from .centre import Centre
from .embedding import Lookup
from .product import packs
from .quantised import Quantised
from .ride import Beside, Ride
from .shard import draw_factors
from .vectors import Seats, Vector


class LowRank(Centre):
    """Members that share one batch. `layers` are the modules whose weights move, by the weight's name; `together` names
    those that read the same input; `still` are other linear layers, which gain from being packed; `quantised` are the
    weights of those layers that hold them so; `embeddings` are tables that move too, by name: where one is tied to a
    head, both move by the same noise, and `layers` holds the head under that name; `vectors` are biases and norms that
    move with full-rank noise (the module and its attribute).

    Raises ConfigError when the rank is larger than a weight's smaller side.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        rank: int,
        together: Sequence[Sequence[str]] = (),
        still: Sequence[nn.Module] = (),
        embeddings: Mapping[str, nn.Embedding] | None = None,
        quantised: Mapping[str, Quantised] | None = None,
        vectors: Mapping[str, tuple[nn.Module, str]] | None = None,
        **options: Any,
    ) -> None:
        tables, packed = embeddings or {}, quantised or {}
        parameters: dict[str, nn.Parameter | Quantised] = {
            name: packed.get(name) or layer.get_parameter("weight") for name, layer in {**layers, **tables}.items()
        }
        for name, parameter in parameters.items():
            if rank > min(parameter.shape):
                raise ConfigError(
                    f"rank {rank} is larger than {name} is wide ({list(parameter.shape)}); use a lower rank."
                )
        parameters |= {name: module.get_parameter(of) for name, (module, of) in (vectors or {}).items()}
        super().__init__(parameters, **options)
        self.rank = rank
        self._seats = Seats()
        self._like = torch.empty(0, dtype=options["dtype"], device=self.parameters[0].device)
        self._rides: list[Ride | Beside] = [Beside(n, layers[n], self._seats, self._like) for n in packed]
        self._rides += self._make_rides({n: layer for n, layer in layers.items() if n not in packed}, together)
        self._lookups = [Lookup(name, table, self._seats) for name, table in tables.items()]
        self._vectors = {name: Vector(module, of, self._seats) for name, (module, of) in (vectors or {}).items()}
        self._still = [Ride({"": layer}, self._seats) for layer in still]
        self._drawn: list[tuple[int, int]] = []
        self._mask = torch.empty(0)

    def _make_rides(self, layers: Mapping[str, nn.Module], together: Sequence[Sequence[str]]) -> list[Ride]:
        """Layers that read the same input become one product where weights are packed: fewer, larger steps."""
        groups = [
            names for names in together if all(n in layers and packs(layers[n].get_parameter("weight")) for n in names)
        ]
        grouped = {name for names in groups for name in names}
        groups += [[name] for name in layers if name not in grouped]
        return [Ride({name: layers[name] for name in names}, self._seats) for names in groups]

    def become(self, members: Sequence[Member | None]) -> None:
        pairs = list(dict.fromkeys((m.iteration, m.pair) for m in members if m is not None))
        if pairs != self._drawn:
            self._draw(pairs)
        for ride in [*self._rides, *self._still]:
            ride.lay_out()
        mask = torch.zeros(len(members), len(pairs))
        for row, member in enumerate(members):
            if member is not None:
                mask[row, pairs.index((member.iteration, member.pair))] = member.sign
        self._mask = mask.repeat_interleave(self.rank, dim=1).to(self._like)
        self.seat(None)

    def seat(self, rows: torch.Tensor | None) -> None:
        if self._drawn:
            self._seats.take(self._mask if rows is None else self._mask[rows], self.rank)

    def restore(self) -> None:
        """The weights never left the centre; only the noise goes."""
        if self._drawn:
            self._draw([])

    def _draw(self, pairs: list[tuple[int, int]]) -> None:
        """The factors of these pairs, for every layer; sigma / sqrt(r) goes into the one that is applied last."""
        keys = [spec.member_key(self.seed, t, pair) for t, pair in pairs]
        factors = dict(zip(self.names, self.factors(keys), strict=True))
        for ride in self._rides:
            ride.set([f for name in ride.names if (f := factors[name])], self.sigma)
        for lookup in self._lookups:
            if f := factors[lookup.name]:
                lookup.set(f, self.sigma)
        for name, vector in self._vectors.items():
            vector.set(self.sigma * self._normals(self.names.index(name), keys))
        self._drawn = pairs
        self._seats.take(None, self.rank)

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
        for ride in self._rides:
            ride.weights_changed()
