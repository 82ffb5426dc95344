"""Embeddings of low-rank members: a row looks up in its member's table, W + sigma * sign * A B^T / sqrt(r).

No such table is made, only the rows of it that are looked up: for ids [rows, T],

    W[ids] + u B_all^T,  u = A_all[ids] * mask,

with A_all [vocabulary, K r] and B_all [n, K r] of the K pairs of a batch, side by side, and `mask` as in `lowrank`. The
module then computes with these rows for its weight: so one that does more than look up (Gemma's scales what it finds)
does it with a member's rows as with its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..noise.cpu import Factors
from .ride import mask_of, side_by_side
from .vectors import Seats


class Lookup:
    """Stands in for the forward pass of one embedding, and adds the members' noise."""

    def __init__(self, name: str, module: nn.Embedding, seats: Seats) -> None:
        self.name, self._module, self._seats = name, module, seats
        self._first = self._second = torch.empty(0)
        self._plain = module.forward
        module.forward = self.forward  # type: ignore[method-assign, assignment]

    def set(self, factors: Factors, sigma: float) -> None:
        """Take the factors of K pairs; sigma / sqrt(r) goes into A, as it does for a tied head."""
        a_all, b_all = side_by_side(factors)
        like = self._module.weight
        self._first = (a_all * (sigma * float(factors.scale))).to(like.device, like.dtype)
        self._second = b_all.to(like.device, like.dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self._seats.mask is None:
            return self._plain(ids)
        u = functional.embedding(ids, self._first)
        u = u * mask_of(u, self._seats, self.name)
        rows = functional.embedding(ids, self._module.weight) + functional.linear(u, self._second)
        with _standing_in(self._module, rows) as numbers:
            return self._plain(numbers)


@contextmanager
def _standing_in(module: nn.Embedding, rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """`rows` [..., n] are the module's weight; yields the ids [...] that find them."""
    padding, module.padding_idx = module.padding_idx, None  # a row of the whole table; it matters to gradients only
    module.__dict__["weight"] = rows.flatten(0, -2)
    try:
        yield torch.arange(rows[..., 0].numel(), device=rows.device).view(rows.shape[:-1])
    finally:
        del module.__dict__["weight"]
        module.padding_idx = padding


def by_rows(module: nn.Embedding) -> bool:
    """Whether what the module yields for an id depends on that row of its weight alone, tried on a few ids: learned
    positions that begin at an offset, or zeros for padding, do not.
    """
    padding = module.padding_idx or 0
    rows = nn.Parameter(module.weight[: max(padding, 7) + 1].detach().cpu(), requires_grad=False)
    tried = copy.deepcopy(module, {id(module.weight): rows}).cpu()  # on a GPU, an id out of range ends the process
    last = len(rows) - 1
    ids = torch.tensor([[last, padding, min(2, last), min(1, last), 0]])
    try:
        with torch.inference_mode():
            expected = tried(ids)
            with _standing_in(tried, rows[ids]) as numbers:
                return torch.equal(tried(numbers), expected)
    except (IndexError, RuntimeError, TypeError):
        return False


def embeddings(model: PreTrainedModel) -> dict[str, tuple[nn.Embedding, nn.Linear | None]]:
    """The embeddings by their weight's name, each with the head that is tied to it. Left out are those whose weight
    more modules share, and all of a model that has no head to tie: it may use a table as one without saying so.
    """
    head = model.get_output_embeddings()
    if head is None:
        return {}
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    found: dict[str, tuple[nn.Embedding, nn.Linear | None]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding):
            continue
        others = [user for user in users[id(module.weight)] if user is not module]
        if not others:
            found[f"{name}.weight"] = (module, None)
        elif others == [head] and type(head) is nn.Linear:
            found[f"{name}.weight"] = (module, head)
    return found
