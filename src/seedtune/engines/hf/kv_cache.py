"""A KV cache for continuous batching: one dense block per layer, allocated once.

All rows end at the same column, so one decode step writes one column for all; a row of n tokens occupies the n columns
before it, without gaps. Active rows are in the first slots. The columns in use are contiguous, with room for the next
few steps only, so that the keys of all rows are one dense block, as batched products need it; when the room is used up,
the cache is compacted: columns that no row uses any more are dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class KVCache(Cache):
    """`num_slots` rows of at most `max_columns` tokens; of its columns, `columns` are in the layout now."""

    def __init__(self, num_layers: int, num_slots: int, max_columns: int) -> None:
        self._layers = [_Layer(num_slots, max_columns) for _ in range(num_layers)]
        super().__init__(layers=list(self._layers))
        self.num_slots, self.max_columns, self.columns = num_slots, max_columns, max_columns

    @staticmethod
    def num_layers(model: PreTrainedModel) -> int | None:
        """The number of layers, when each of them caches keys and values of every token; else None."""
        layers = DynamicCache(config=model.config).layers
        supported = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        return len(layers) if layers and supported else None

    @staticmethod
    def has_sliding_window(model: PreTrainedModel) -> bool:
        """Whether some layers attend to the last few tokens only."""
        return any(isinstance(layer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=model.config).layers)

    def set_view(self, slots: slice, first: int, write: int, end: int) -> None:
        """The next forward pass is of these slots; it writes the columns from `write` on and attends to those from
        `first` to `end` (the mask hides those after its own tokens).
        """
        for layer in self._layers:
            layer.slots, layer.first, layer.write, layer.end = slots, first, write, end

    def compact(self, columns: int, slots: int = 0, first: int = 0, end: int = 0, to: int = 0) -> None:
        """Change the layout to `columns` columns; of the first `slots` slots, the columns from `first` to `end` are
        kept, and moved to `to`.
        """
        self.columns = columns
        for layer in self._layers:
            layer.compact(columns, slots, first, end, to)

    def move(self, sources: torch.Tensor, targets: torch.Tensor, first: int, end: int) -> None:
        """Move rows from the slots `sources` to the slots `targets`."""
        for buffer in self._buffers():
            buffer[targets, :, first:end] = buffer[sources, :, first:end]

    def copy_from(self, other: KVCache, sources: torch.Tensor, targets: torch.Tensor, columns: slice, to: int) -> None:
        """Copy these columns of the slots `sources` of another cache to the slots `targets`, from column `to` on."""
        end = to + columns.stop - columns.start
        for mine, theirs in zip(self._buffers(like=other), other._buffers(), strict=True):
            mine[targets, :, to:end] = theirs[sources, :, columns]

    def take(self, slot: int, first: int, end: int) -> list[torch.Tensor]:
        """A copy of what these columns of a slot hold, for `put`."""
        return [buffer[slot, :, first:end].clone() for buffer in self._buffers()]

    def put(self, slot: int, taken: list[torch.Tensor], columns: int, to: int) -> None:
        """Write the first `columns` columns of what was taken to a slot, from column `to` on."""
        for buffer, values in zip(self._buffers(), taken, strict=True):
            buffer[slot, :, to : to + columns] = values[:, :columns]

    def _buffers(self, like: KVCache | None = None) -> list[torch.Tensor]:
        for n, layer in enumerate(self._layers):
            if like is not None and not layer.is_initialized:
                layer.lazy_initialization(*like._layers[n].buffers())
        return [buffer for layer in self._layers if layer.is_initialized for buffer in layer.buffers()]


class _Layer(CacheLayerMixin):
    """One layer's keys and values [slots, heads, columns, head width], allocated when the first are seen.

    Zeros, not empty: a masked column is multiplied by zero, and must be finite for that.
    """

    def __init__(self, num_slots: int, max_columns: int) -> None:
        super().__init__()
        self.num_slots, self.max_columns, self.columns = num_slots, max_columns, max_columns
        self.slots, self.first, self.write, self.end = slice(0, 0), 0, 0, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self._heads_and_width = [(states.shape[1], states.shape[3]) for states in (key_states, value_states)]
        self._memory = [
            states.new_zeros(self.num_slots * heads * self.max_columns * width)
            for states, (heads, width) in zip((key_states, value_states), self._heads_and_width, strict=True)
        ]
        self.is_initialized = True
        self._view_memory()

    def _view_memory(self) -> None:
        self.keys, self.values = (
            memory[: self.num_slots * heads * self.columns * width].view(self.num_slots, heads, self.columns, width)
            for memory, (heads, width) in zip(self._memory, self._heads_and_width, strict=True)
        )

    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all slots and columns."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def compact(self, columns: int, slots: int, first: int, end: int, to: int) -> None:
        self.columns = columns
        if self.is_initialized:
            kept = [buffer[:slots, :, first:end].clone() for buffer in self.buffers()]
            self._view_memory()
            for buffer, old in zip(self.buffers(), kept, strict=True):
                buffer[:slots, :, to : to + end - first] = old

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.buffers()
        new = slice(self.write, self.write + key_states.shape[2])
        keys[self.slots, :, new], values[self.slots, :, new] = key_states, value_states
        return keys[self.slots, :, self.first : self.end], values[self.slots, :, self.first : self.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.end - self.first, 0

    def get_seq_length(self) -> int:
        return self.write - self.first

    def get_max_length(self) -> int:
        return self.max_columns
