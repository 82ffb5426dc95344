"""The weights as they came, on disk: only evaluations and returns read them, and in memory they are as large as the
model.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple, cast

import torch

from ..utils.cache import cache_folder


class _Place(NamedTuple):
    offset: int
    dtype: torch.dtype
    shape: torch.Size


class BaseCopy:
    """Copies of tensors, in their order, in a file of the cache folder that has no name and goes with the process; in
    memory where that cannot be written.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._file: BinaryIO | None = _unnamed_file()
        if self._file is not None:
            weakref.finalize(self, self._file.close)
        self._places: list[_Place | torch.Tensor] = []
        for tensor in tensors:
            flat = tensor.detach().cpu().contiguous()
            self._places.append(self._write(flat) or flat.clone())

    def _write(self, tensor: torch.Tensor) -> _Place | None:
        if self._file is None:
            return None
        try:
            offset = self._file.seek(0, 2)
            self._file.write(_bytes(tensor))
            self._file.flush()
        except OSError:  # a full disk: the rest stays in memory
            return None
        return _Place(offset, tensor.dtype, tensor.shape)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, n: int) -> torch.Tensor:
        """Tensor `n`, on the CPU. Raises OSError when the disk fails."""
        place = self._places[n]
        if isinstance(place, torch.Tensor):
            return place
        assert self._file is not None
        tensor = torch.empty(place.shape, dtype=place.dtype)
        self._file.seek(place.offset)
        if self._file.readinto(_bytes(tensor)) != tensor.nbytes:  # type: ignore[attr-defined]  # not in typing.IO
            raise OSError("the copy of the base model on disk is incomplete")
        return tensor


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _unnamed_file() -> BinaryIO | None:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))
    except OSError:
        return None
