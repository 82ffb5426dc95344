"""Given texts, read in forward passes: a chunk in batches that depend on the chunk alone. Nothing is decoded.

Rows are of different members, as in the decoder; `select_rows` says which rows of the chunk a forward pass holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PreTrainedModel

from ...errors import NotFiniteError
from ..base import Prompt, TextOutputs
from .decoder import SelectRows
from .logprobs import NOT_FINITE, equal_lengths, forward

#: Tokens of a forward pass, and logits of one, at most.
_MAX_TOKENS = {"cpu": 2048, "cuda": 32768}
_MAX_LOGITS = {"cpu": 2**25, "cuda": 2**29}
#: How many of these are in float32 at once.
_MAX_FLOATS = 2**23


@dataclass(frozen=True)
class _Text:
    """One given text of a row."""

    row: int
    prompt: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Found:
    logprobs: NDArray[np.float64]
    logits: torch.Tensor | None
    hidden_states: tuple[torch.Tensor, ...] | None


class Reader:
    """Reads chunks of given texts. `pads`: rows of different lengths may share a forward pass."""

    def __init__(self, model: PreTrainedModel, pad: int, *, pads: bool) -> None:
        self.model, self.pad, self.pads = model, pad, pads

    def read(
        self, prompts: Sequence[Prompt], rows_at_once: int, wanted: Collection[str], select_rows: SelectRows
    ) -> Iterator[TextOutputs]:
        """As `TextScorer.read`."""
        for rows in self._batches(prompts, rows_at_once):
            texts = [_Text(n, prompts[n].ids, given.ids) for n in rows for given in prompts[n].given]
            found = self._read(texts, wanted, select_rows)
            each = [[f for text, f in zip(texts, found, strict=True) if text.row == n] for n in rows]
            yield TextOutputs(
                tuple(rows),
                [[f.logprobs for f in of_row] for of_row in each],
                _all_there(of_row[0].logits for of_row in each),
                _all_there(of_row[0].hidden_states for of_row in each),
            )

    def _batches(self, prompts: Sequence[Prompt], rows_at_once: int) -> Iterator[list[int]]:
        """Rows that are read together, of like lengths, so that little is padding."""
        device = self.model.device.type
        vocabulary, copies = self.model.config.get_text_config().vocab_size, max(len(p.given) for p in prompts)
        batch: list[int] = []
        width = longest = 0
        for n in sorted(range(len(prompts)), key=lambda n: (prompts[n].num_tokens, n)):
            wider = max(width, prompts[n].num_tokens)
            longer = max(longest, *(len(text.ids) for text in prompts[n].given))
            texts = copies * (len(batch) + 1)
            full = texts * wider > _MAX_TOKENS[device] or texts * longer * vocabulary > _MAX_LOGITS[device]
            if batch and (full or len(batch) == rows_at_once):
                yield batch
                batch, wider, longer = [], prompts[n].num_tokens, max(len(text.ids) for text in prompts[n].given)
            batch.append(n)
            width, longest = wider, longer
        yield batch

    def _read(self, texts: Sequence[_Text], wanted: Collection[str], select_rows: SelectRows) -> list[_Found]:
        groups = [list(range(len(texts)))] if self.pads else equal_lengths([len(t.prompt) + len(t.ids) for t in texts])
        found: dict[int, _Found] = {}
        for group in groups:
            some = [texts[n] for n in group]
            select_rows(torch.tensor([text.row for text in some], device=self.model.device))
            found.update(zip(group, self._pass(some, wanted), strict=True))
        return [found[n] for n in range(len(texts))]

    def _pass(self, texts: Sequence[_Text], wanted: Collection[str]) -> Iterator[_Found]:
        """One forward pass. Texts end in its last column, and what predicts a token stands one column before it."""
        new = [text.ids for text in texts]
        more = {"output_hidden_states": True} if "hidden_states" in wanted else {}
        out = forward(self.model, [text.prompt for text in texts], new, self.pad, **more)
        logprobs = chosen_logprobs(out.logits, new)
        if any(np.isnan(row).any() for row in logprobs):
            raise NotFiniteError(NOT_FINITE)
        for n, ids in enumerate(new):
            places = slice(-len(ids) - 1, -1)
            logits = out.logits[n, places] if "logits" in wanted else None
            hidden = tuple(layer[n, places] for layer in out.hidden_states) if more else None
            yield _Found(logprobs[n], logits, hidden)


def chosen_logprobs(logits: torch.Tensor, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
    """log p of each token of texts that end in the last column, from logits [rows, columns, vocabulary] that end there,
    too: those of a column are of the token in the next one.
    """
    ids = torch.tensor([token for text in texts for token in text], device=logits.device)
    per_token = torch.cat([logits[n, -len(text) - 1 : -1] for n, text in enumerate(texts)])
    count = max(1, _MAX_FLOATS // logits.shape[-1])
    parts = zip(per_token.split(count), ids.split(count), strict=True)
    loss = torch.cat([functional.cross_entropy(part.float(), chosen, reduction="none") for part, chosen in parts])
    return np.split(-loss.double().cpu().numpy(), np.cumsum([len(text) for text in texts])[:-1])


def _all_there(values: Any) -> list[Any] | None:
    found = list(values)
    return None if found[0] is None else found
