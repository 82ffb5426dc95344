"""Embeddings of low-rank members: a row is looked up in its member's table, W + sigma * sign * A B^T / sqrt(r).

No such table is made, only the rows of it that are looked up: for ids [rows, T],

    W[ids] + u B_all^T,  u = A_all[ids] * mask,

with A_all [vocabulary, K r] and B_all [n, K r] of the K pairs of a batch, side by side, and `mask` as in `members`. The
module then computes with these rows as its weight, so one that does more than look up (Gemma scales the embedding) does
the same to a member's rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from ...noise.cpu import Factors
from .attachment import Attachment, RowAssignment
from .linear import concat_pairs


class LowRankEmbedding(Attachment):
    """Replaces the forward pass of one embedding, and adds the members' noise."""

    def __init__(self, name: str, module: nn.Embedding, assignment: RowAssignment) -> None:
        super().__init__(assignment)
        self.name, self._module = name, module
        self._a_all = self._b_all = torch.empty(0)
        self._module_forward = module.forward
        self.replace_forward(module, self.forward)

    def set(self, factors: Factors, sigma: float) -> None:
        """Use the factors of K pairs; sigma / sqrt(r) is multiplied into A, as it is for a tied head."""
        a_all, b_all = concat_pairs(factors)
        weight = self._module.weight
        self._a_all = (a_all * (sigma * float(factors.scale))).to(weight.device, weight.dtype)
        self._b_all = b_all.to(weight.device, weight.dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.assignment.mask is None:
            return self._module_forward(ids)
        u = functional.embedding(ids, self._a_all)
        u = u * self.assignment.mask_for(u, self.name)
        rows = functional.embedding(ids, self._module.weight) + functional.linear(u, self._b_all)
        with _use_as_weight(self._module, rows) as row_ids:
            return self._module_forward(row_ids)


@contextmanager
def _use_as_weight(module: nn.Embedding, rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """The module's weight is `rows` [..., n] for a while; yields the ids [...] under which it finds them."""
    padding, module.padding_idx = module.padding_idx, None  # a row of the whole table; it matters to gradients only
    module.__dict__["weight"] = rows.flatten(0, -2)
    try:
        yield torch.arange(rows[..., 0].numel(), device=rows.device).view(rows.shape[:-1])
    finally:
        del module.__dict__["weight"]
        module.padding_idx = padding


def is_row_lookup(module: nn.Embedding) -> bool:
    """Whether the module's output for an id depends on that row of its weight alone, tried on a few ids. False for
    learned positions that begin at an offset, and for zeros in place of padding.
    """
    padding = module.padding_idx or 0
    rows = nn.Parameter(module.weight[: max(padding, 7) + 1].detach().cpu(), requires_grad=False)
    tried = copy.deepcopy(module, {id(module.weight): rows}).cpu()  # on a GPU, an id out of range ends the process
    last = len(rows) - 1
    ids = torch.tensor([[last, padding, min(2, last), min(1, last), 0]])
    try:
        with torch.inference_mode():
            expected = tried(ids)
            with _use_as_weight(tried, rows[ids]) as row_ids:
                return torch.equal(tried(row_ids), expected)
    except (IndexError, RuntimeError, TypeError):
        return False


def find_embeddings(model: PreTrainedModel) -> dict[str, tuple[nn.Embedding, nn.Linear | None]]:
    """The embeddings by their weight's name, each with the head that is tied to it. Left out are those whose weight is
    shared with other modules, and all of a model without a head: it may use a table as its head without saying so.
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
