"""Keys and values of rows that come and go, preallocated.

Every row ends at the same column, so one step writes one column for all; a row of n tokens occupies the n columns
before it, without a gap. Rows sit in the first `rows` places, so that a batch is a view. A row that joins is written
into the columns before the current one; when columns run out, all slide to the left.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class RowCache(Cache):
    """`places` rows of `columns` tokens. A forward pass sees the rows and columns that `view` chose."""

    def __init__(self, layers: int, places: int, columns: int) -> None:
        self._own = [_Layer(places, columns) for _ in range(layers)]
        super().__init__(layers=list(self._own))
        self.places, self.columns = places, columns

    @staticmethod
    def suits(model: PreTrainedModel) -> int | None:
        """The number of layers, when each of them caches keys and values of every token; else None."""
        layers = DynamicCache(config=model.config).layers
        plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        return len(layers) if layers and plain else None

    def view(self, rows: slice, first: int, end: int) -> None:
        """The next forward pass is of `rows`; they hold columns `first` to `end`, and new tokens go behind."""
        for layer in self._own:
            layer.rows, layer.first, layer.end = rows, first, end

    def move(self, source: torch.Tensor, target: torch.Tensor, first: int, end: int) -> None:
        """Move rows `source` to the places `target`."""
        for buffer in self._buffers():
            buffer[target, :, first:end] = buffer[source, :, first:end]

    def slide(self, rows: int, first: int, end: int, to: int) -> None:
        """Move columns `first` to `end` of the first `rows` rows to the left, to column `to`."""
        for buffer in self._buffers():
            buffer[:rows, :, to : to + end - first] = buffer[:rows, :, first:end].clone()

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

    def __init__(self, places: int, columns: int) -> None:
        super().__init__()
        self.places, self.columns = places, columns
        self.rows, self.first, self.end = slice(0, 0), 0, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def buffer(like: torch.Tensor) -> torch.Tensor:
            return like.new_zeros(self.places, like.shape[1], self.columns, like.shape[3])

        self.keys, self.values = buffer(key_states), buffer(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.end + key_states.shape[2]
        keys, values = self.held()
        keys[self.rows, :, self.end : end] = key_states
        values[self.rows, :, self.end : end] = value_states
        return keys[self.rows, :, self.first : end], values[self.rows, :, self.first : end]

    def held(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All places and columns."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.end - self.first + query_length, 0

    def get_seq_length(self) -> int:
        return self.end - self.first

    def get_max_length(self) -> int:
        return self.columns
