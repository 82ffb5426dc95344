"""Keys and values of rows that come and go, in memory that is set aside once.

Every row ends at the same column, so one step writes one column for all; a row of n tokens occupies the n columns
before it, without a gap. Rows sit in the first places. The columns of a row lie side by side without room to spare but
for the next few steps, so that the keys of all rows are one dense block, as batched products want them; when the room
is used up, the columns that are still held are laid out anew.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class RowCache(Cache):
    """`places` rows of at most `most` columns, `columns` of them laid out now."""

    def __init__(self, layers: int, places: int, most: int) -> None:
        self._own = [_Layer(places, most) for _ in range(layers)]
        super().__init__(layers=list(self._own))
        self.places, self.most, self.columns = places, most, most

    @staticmethod
    def suits(model: PreTrainedModel) -> int | None:
        """The number of layers, when each of them caches keys and values of every token; else None."""
        layers = DynamicCache(config=model.config).layers
        plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        return len(layers) if layers and plain else None

    @staticmethod
    def slides(model: PreTrainedModel) -> bool:
        """Whether some layers look at the last few tokens only."""
        return any(isinstance(layer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=model.config).layers)

    def view(self, rows: slice, first: int, write: int, end: int) -> None:
        """The next forward pass is of `rows`; it writes the columns from `write` on and sees those from `first` to
        `end` (what stands behind its own tokens is for the mask to hide).
        """
        for layer in self._own:
            layer.rows, layer.first, layer.write, layer.end = rows, first, write, end

    def lay_out(self, columns: int, rows: int = 0, first: int = 0, end: int = 0, to: int = 0) -> None:
        """Have `columns` columns; what the first `rows` rows hold from `first` to `end` comes to stand from `to` on."""
        self.columns = columns
        for layer in self._own:
            layer.lay_out(columns, rows, first, end, to)

    def move(self, source: torch.Tensor, target: torch.Tensor, first: int, end: int) -> None:
        """Move rows `source` to the places `target`."""
        for buffer in self._buffers():
            buffer[target, :, first:end] = buffer[source, :, first:end]

    def copy(self, other: RowCache, source: torch.Tensor, target: torch.Tensor, length: int, to: int) -> None:
        """Give rows `target` the first `length` columns of the rows `source` of another cache, from column `to` on."""
        for mine, theirs in zip(self._buffers(like=other), other._buffers(), strict=True):
            mine[target, :, to : to + length] = theirs[source, :, :length]

    def _buffers(self, like: RowCache | None = None) -> list[torch.Tensor]:
        for n, layer in enumerate(self._own):
            if like is not None and not layer.is_initialized:
                layer.lazy_initialization(*like._own[n].held())
        return [buffer for layer in self._own if layer.is_initialized for buffer in layer.held()]


class _Layer(CacheLayerMixin):
    """One layer's keys and values [places, heads, columns, width], made when the first are seen.

    Zeros, not empty: what a masked column holds is multiplied by zero, and must be finite for that.
    """

    def __init__(self, places: int, most: int) -> None:
        super().__init__()
        self.places, self.most, self.columns = places, most, most
        self.rows, self.first, self.write, self.end = slice(0, 0), 0, 0, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self._like = [(like.shape[1], like.shape[3]) for like in (key_states, value_states)]
        self._memory = [
            like.new_zeros(self.places * heads * self.most * width)
            for like, (heads, width) in zip((key_states, value_states), self._like, strict=True)
        ]
        self.is_initialized = True
        self._shape()

    def _shape(self) -> None:
        self.keys, self.values = (
            memory[: self.places * heads * self.columns * width].view(self.places, heads, self.columns, width)
            for memory, (heads, width) in zip(self._memory, self._like, strict=True)
        )

    def held(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All places and columns."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def lay_out(self, columns: int, rows: int, first: int, end: int, to: int) -> None:
        self.columns = columns
        if self.is_initialized:
            kept = [buffer[:rows, :, first:end].clone() for buffer in self.held()]
            self._shape()
            for buffer, old in zip(self.held(), kept, strict=True):
                buffer[:rows, :, to : to + end - first] = old

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.held()
        new = slice(self.write, self.write + key_states.shape[2])
        keys[self.rows, :, new], values[self.rows, :, new] = key_states, value_states
        return keys[self.rows, :, self.first : self.end], values[self.rows, :, self.first : self.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.end - self.first, 0

    def get_seq_length(self) -> int:
        return self.write - self.first

    def get_max_length(self) -> int:
        return self.most
