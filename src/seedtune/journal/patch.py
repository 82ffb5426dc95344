"""A fine-tune as a file of kilobytes: seeds and coefficients of its updates, as docs/reference/patch-format.md says."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from ..errors import JournalError
from .record import Iteration

MAGIC = b"SEEDTUNE"
#: 2: its header lists the iterations, as some were undone; all else is as in 1.
FORMATS = (1, 2)
_START = struct.Struct("<8sHQ")  # magic, format, size of the payload
_MOST = 1 << 30


@dataclass(frozen=True)
class Patch:
    """`header` is that of the journal (base, config, noise_version...); then, for T iterations of N members, the
    coefficient of each member's noise, the learning rates, and the digests of the weights after each update. They are
    iterations 1 to T, unless a run returned to an earlier center: then `steps` has their numbers, in order.
    """

    header: Mapping[str, Any]
    coefficients_T_N: NDArray[np.float32]
    rates_T: NDArray[np.float64]
    digests_T: NDArray[np.uint64]
    steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", self.steps or tuple(range(1, len(self.rates_T) + 1)))

    @staticmethod
    def of(header: Mapping[str, Any], iterations: Sequence[Iteration]) -> Patch:
        """From the trajectory of a journal. Raises JournalError when there is nothing to export."""
        if not iterations:
            raise JournalError(
                "there is nothing to export: the run has no finished iteration, or no center that is better than its "
                "base model."
            )
        return Patch(
            {key: header[key] for key in ("base", "config", "noise_version", "software")},
            np.stack([it.coefficients_M for it in iterations]).astype("<f4"),
            np.array([it.learning_rate for it in iterations], dtype="<f8"),
            np.array([int(it.digest, 16) for it in iterations], dtype="<u8"),
            tuple(it.t for it in iterations),
        )

    def __len__(self) -> int:
        return len(self.rates_T)

    def first(self, count: int) -> Patch:
        """With the first `count` updates only."""
        arrays = (self.coefficients_T_N[:count], self.rates_T[:count], self.digests_T[:count])
        return Patch(self.header, *arrays, self.steps[:count])

    @property
    def num_perturbed(self) -> int:
        """How many weights are in scope."""
        return sum(math.prod(shape) for _, _, shape in self.header["base"]["scope"])

    def digest(self, count: int) -> str:
        """The digest of the weights after the first `count` updates, 16 hexadecimal digits."""
        return f"{int(self.digests_T[count - 1]):016x}"

    def to_bytes(self) -> bytes:
        """The file, as docs/reference/patch-format.md describes it."""
        consecutive = self.steps == tuple(range(1, len(self) + 1))
        steps = {} if consecutive else {"steps": list(self.steps)}
        sizes = {"iterations": len(self), "members": self.coefficients_T_N.shape[1]}
        text = json.dumps({**self.header, **sizes, **steps}, separators=(",", ":")).encode()
        arrays = (self.coefficients_T_N, self.rates_T, self.digests_T)
        payload = struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays)
        squeeze = zstandard.ZstdCompressor(level=19, write_checksum=True, write_content_size=True)
        return _START.pack(MAGIC, FORMATS[not consecutive], len(payload)) + squeeze.compress(payload)

    @staticmethod
    def from_bytes(data: bytes, name: str = "the patch") -> Patch:
        """From the file, which `name` names in errors. Raises JournalError for anything that is not a complete patch
        in a format that this version reads.
        """
        if data[:8] != MAGIC or len(data) < _START.size:
            raise JournalError(f"{name} is not a Seedtune patch: it does not begin with SEEDTUNE.")
        _, version, size = _START.unpack_from(data)
        if version not in FORMATS:
            known = " and ".join(map(str, FORMATS))
            raise JournalError(f"{name} has patch format {version}; this version of Seedtune reads {known}.")
        try:
            frame = data[_START.size :]
            if size > _MOST:
                raise ValueError(f"it claims to hold {size} bytes")
            if zstandard.get_frame_parameters(frame).content_size != size:  # memory is allocated by the frame's size
                raise ValueError("its frame is of another size than its payload")
            payload = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
            if len(payload) != size:
                raise ValueError("its length is not what it says")
            return _parse(payload)
        except (zstandard.ZstdError, ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as e:
            raise JournalError(f"{name} is damaged: {e!r}. Get a new copy.") from None


def _parse(payload: bytes) -> Patch:
    (length,) = struct.unpack_from("<Q", payload)
    header = json.loads(payload[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    count, members = int(header.pop("iterations")), int(header.pop("members"))
    given = header.pop("steps", None)
    if count < 1 or members < 1 or len(payload) != 8 + length + count * (4 * members + 8 + 8):
        raise ValueError("its arrays are not as long as its header says")
    steps = tuple(range(1, count + 1) if given is None else (int(t) for t in given))
    if len(steps) != count or steps[0] < 1 or any(a >= b for a, b in pairwise(steps)):
        raise ValueError("its iterations are not in order")
    _check(header, members)
    arrays = memoryview(payload)[8 + length :]
    coefficients = np.frombuffer(arrays, "<f4", count * members).reshape(count, members)
    rates = np.frombuffer(arrays, "<f8", count, offset=4 * count * members)
    digests = np.frombuffer(arrays, "<u8", count, offset=4 * count * members + 8 * count)
    if not (np.isfinite(coefficients).all() and np.isfinite(rates).all()):
        raise ValueError("a coefficient or a learning rate is not a number")
    return Patch(header, coefficients.astype(np.float32), rates, digests, steps)


def _check(header: Mapping[str, Any], members: int) -> None:
    """Raise ValueError, KeyError or TypeError for a header that lacks what docs/reference/patch-format.md asks for."""
    base, config = header["base"], header["config"]
    int(header["noise_version"])
    int(base["digest"], 16)
    if not isinstance(base["model"], str) or base["base_dtype"] not in ("float32", "bfloat16", "float16"):
        raise ValueError("its header does not say which base model it is for")
    for name, number, shape in base["scope"]:
        if not (isinstance(name, str) and 0 <= number < 2**32 and all(isinstance(n, int) and n > 0 for n in shape)):
            raise ValueError("its scope is not a list of name, id and shape")
    if config["perturbation"] not in ("full", "lowrank") or not isinstance(config["antithetic"], bool):
        raise ValueError("its settings do not say how noise was made")
    if config["population_size"] != members or not 0 <= config["seed"] < 2**64 or config["rank"] < 1:
        raise ValueError("its settings are not those of its arrays")
