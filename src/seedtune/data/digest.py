"""The digest of training data: equal data have equal digests, in every process and on every machine."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import ipaddress
import json
import pathlib
import re
import uuid
from collections.abc import Mapping, Sequence, Set, ValuesView
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from ..errors import DataError

#: Kinds whose text says all that they hold, and nothing of where they lie in memory.
_TEXT_SAYS_ALL = (
    bytes, bytearray, complex, collections.UserString, datetime.date, datetime.time, datetime.timedelta,
    datetime.tzinfo, decimal.Decimal, enum.Enum, fractions.Fraction, ipaddress.IPv4Address, ipaddress.IPv6Address,
    np.generic, pathlib.PurePath, re.Pattern, uuid.UUID,
)  # fmt: skip


class DataDigest:
    """Takes rows, one after another, and counts them by content: sets in any order, arrays, tensors and images by what
    they hold, dataclasses by the fields that they are compared by. Any other object counts as its kind alone: its text
    may tell where it lies in memory. `left_out` has such columns, and their kinds.

    What JSON can hold has the digest of 0.1.0.
    """

    def __init__(self) -> None:
        self._total = hashlib.sha256()
        self._num_rows = 0
        self._opaque: set[str] = set()  # kinds in the value at hand whose content does not count
        self.left_out: dict[str, str] = {}

    def add(self, row: Mapping[str, Any], ids: Sequence[int]) -> None:
        """One more row, with the tokens of its prompt. Raises DataError for one that cannot be read to its end."""
        self._num_rows += 1
        self._opaque.clear()
        try:
            self._total.update(self._text([dict(row), ids]).encode())
            for name in row if self._opaque else ():
                self._opaque.clear()
                self._text(row[name])
                if self._opaque:
                    self.left_out.setdefault(name, ", ".join(sorted(self._opaque)))
        except Exception as e:  # of objects' own, too
            raise DataError(
                f"train_dataset, row {self._num_rows} cannot be read to its end ({type(e).__name__}: {e}): a column "
                "holds itself, or something that cannot be read. Leave that column out."
            ) from e

    def hexdigest(self) -> str:
        """16 hexadecimal digits."""
        return self._total.hexdigest()[:16]

    def _text(self, value: Any) -> str:
        try:
            return json.dumps(value, sort_keys=True, default=self._content)
        except TypeError:  # keys that JSON does not have, or that cannot be sorted
            return json.dumps(self._with_text_keys(value), sort_keys=True, default=self._content)

    def _content(self, value: Any) -> Any:
        """What JSON has no word for, in what it has; the encoder asks again for what that holds."""
        if isinstance(value, _TEXT_SAYS_ALL):
            return str(value)
        if isinstance(value, memoryview):
            return str(value.tobytes())
        if isinstance(value, Mapping):
            return self._with_text_keys(value)
        if isinstance(value, Set):
            return [type(value).__name__, sorted(self._text(item) for item in value)]
        if isinstance(value, Sequence | ValuesView | array.array):
            return self._with_text_keys(list(value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            held: Any = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
        else:
            held = _numbers(value)
        if held is None:
            self._opaque.add(type(value).__name__)
        return [type(value).__name__, self._with_text_keys(held)]

    def _with_text_keys(self, value: Any) -> Any:
        """With mappings whose keys are not all text as their pairs, sorted."""
        if isinstance(value, Mapping):
            held = {key: self._with_text_keys(item) for key, item in value.items()}
            if all(isinstance(key, str) for key in held):
                return held
            return sorted([self._text(key), self._text(item)] for key, item in held.items())
        if isinstance(value, list | tuple):
            return [self._with_text_keys(item) for item in value]
        return value


def _numbers(value: Any) -> list[Any] | None:
    """What an array, a tensor or an image holds: its shape, and the digest of its numbers. None for anything else."""
    if any(cls.__module__ == "PIL.Image" for cls in type(value).__mro__):
        return [value.mode, list(value.size), value.getpalette(), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, torch.Tensor):
        with suppress(RuntimeError):  # one without storage, or with codes of its own
            plain = value.detach().to_dense().cpu().resolve_conj().resolve_neg()
            codes = plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return [str(plain.dtype), list(plain.shape), hashlib.sha256(codes).hexdigest()]
        return None
    if isinstance(value, np.ndarray) or (hasattr(value, "__array__") and not isinstance(value, type)):
        numbers = np.asarray(value)
        shape = [str(numbers.dtype), list(numbers.shape)]
        if numbers.dtype.hasobject:  # addresses
            return [*shape, numbers.tolist()] if isinstance(value, np.ndarray) or numbers.ndim else None
        return [*shape, hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()]
    return None
