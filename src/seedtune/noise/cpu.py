"""The noise stream in numba, fused with what uses it; the same bits as `spec`, whatever the split into ranges.

Weights are walked in tiles of 1,024 elements that stay in the first-level cache: words (Philox), normals (table),
arithmetic, store. The small loops are separate functions so that LLVM vectorises each of them. No fast-math: a
multiply and an add stay two roundings, as `spec` and every other device do them.

All functions work on flat arrays. `start` is the index of the first element given: in the whole parameter, or in a
`Cut` of it, as a shard of a model that is spread over several devices holds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import kernels, spec
from .kernels import BF16, F16, F32
from .spec import Key, Purpose

__all__ = ["BF16", "F16", "F32"]

_NO16 = np.empty(0, np.uint16)
_NO32 = np.empty(0, np.float32)


class Weights(NamedTuple):
    """A flat run of weights as numba sees it: 16-bit formats by their bits, or float32; the other is empty."""

    bits16: NDArray[np.uint16]
    values32: NDArray[np.float32]
    format: int

    @staticmethod
    def of(array: NDArray[Any], format: int) -> Weights:
        """Wrap a flat contiguous array: float32 for F32, uint16 bits for BF16 and F16."""
        return Weights(_NO16, array, F32) if format == F32 else Weights(array, _NO32, format)

    def __len__(self) -> int:
        return len(self.values32) if self.format == F32 else len(self.bits16)

    def part(self, start: int, stop: int) -> Weights:
        return Weights(self.bits16[start:stop], self.values32[start:stop], self.format)

    def bits(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        return self.values32.view(np.uint32) if self.format == F32 else self.bits16


NO_WEIGHTS = Weights(_NO16, _NO32, F32)


class Cut(NamedTuple):
    """A block of a matrix that is `width` wide: rows of `columns` elements, the first one at index `first`."""

    columns: int
    width: int
    first: int


#: Every element at its own index.
WHOLE = Cut(2**62, 0, 0)


# --- what the rest of the library calls -------------------------------------------------------------------------------


def normals(out: NDArray[np.float32], key: Key, parameter: int, purpose: Purpose, start: int = 0) -> None:
    """Fill `out` with the normals of elements `start`...; as `spec.normals`."""
    kernels.normals(
        out, start, spec.table(), np.uint32(parameter), np.uint32(purpose), np.uint32(key[0]), np.uint32(key[1])
    )


def perturb(
    out: Weights, source: Weights, scale: float, key: Key, parameter: int, start: int = 0, cut: Cut = WHOLE
) -> None:
    """out = round(source + float32(scale) * noise). `out` and `source` may be the same weights; scale 0 only rounds."""
    kernels.perturb(
        *out,
        *source,
        len(out),
        np.float32(scale),
        start,
        *cut,
        spec.table(),
        np.uint32(parameter),
        np.uint32(key[0]),
        np.uint32(key[1]),
    )


class Factors(NamedTuple):
    """Low-rank noise of a weight [m, n] in K directions: a_K [K, m, rank], b_K [K, rank, n]; and 1 / sqrt(rank)."""

    a_K: NDArray[np.float32]
    b_K: NDArray[np.float32]
    scale: np.float32

    @staticmethod
    def draw(keys: list[Key], parameter: int, shape: tuple[int, int], rank: int) -> Factors:
        """As `spec.factors`, B transposed so that a row of it is contiguous."""
        m, n = shape
        a_K = np.empty((len(keys), m, rank), np.float32)
        b_K = np.empty((len(keys), n, rank), np.float32)
        for q, key in enumerate(keys):
            normals(a_K[q].reshape(-1), key, parameter, Purpose.FACTOR_A)
            normals(b_K[q].reshape(-1), key, parameter, Purpose.FACTOR_B)
        return Factors(a_K, np.ascontiguousarray(b_K.transpose(0, 2, 1)), spec.rank_scale(rank))


_NO_FACTORS = Factors(np.empty((0, 0, 0), np.float32), np.empty((0, 0, 0), np.float32), np.float32(0))


class Step(NamedTuple):
    """The numbers of one update that are the same for every element; float32 in the arithmetic. See `es.update`."""

    rate: float
    decay: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    epsilon: float = 0.0
    correction1: float = 1.0
    correction2: float = 1.0


def update(
    weights: Weights,
    keys: list[Key],
    coefficients: NDArray[np.float32],
    parameter: int,
    step: Step,
    momentum: NDArray[np.float32] = _NO32,
    second_moment: NDArray[np.float32] = _NO32,
    anchor: Weights = NO_WEIGHTS,
    start: int = 0,
    factors: Factors | None = None,
    rounding: Key | None = None,
    cut: Cut = WHOLE,
) -> float:
    """Apply one update in place, in one pass, the noise of all members regenerated inside it.

    g = sum over directions q, in order, of coefficients[q] * noise[q]; then `es.update.apply`. With `factors` the noise
    is low-rank, `spec.low_rank` (factors of a cut are those of its rows and columns); with `rounding` bfloat16 weights
    are rounded as `spec.round_stochastically` does, by that key. Returns the sum of the squares of what each weight
    moved (a statistic; float64).
    """
    a_K, b_K, scale = factors or _NO_FACTORS
    r0, r1 = rounding or (0, 0)
    k0s = np.array([k[0] for k in keys], np.uint32)
    k1s = np.array([k[1] for k in keys], np.uint32)
    return float(
        kernels.update(
            *weights,
            len(weights),
            k0s,
            k1s,
            a_K,
            b_K,
            scale,
            coefficients.astype(np.float32),
            start,
            *cut,
            spec.table(),
            np.uint32(parameter),
            momentum,
            second_moment,
            *anchor,
            rounding is not None,
            np.uint32(r0),
            np.uint32(r1),
            *(np.float32(x) for x in step),
        )
    )


def digest(weights: Weights, parameter: int, start: int = 0, cut: Cut = WHOLE) -> int:
    """As `spec.digest`."""
    return int(kernels.digest(weights.bits(), parameter, start, *cut))


# --- threads ----------------------------------------------------------------------------------------------------------

Range = tuple[int, int, int]
T = TypeVar("T")
_SPAN = 1 << 18
_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_pool: ThreadPoolExecutor | None = None


def set_threads(count: int) -> None:
    """How many threads `parallel` uses (default: all cores of this process). The bits do not depend on it."""
    global _threads, _pool
    if count != _threads:
        _threads = count
        if _pool is not None:
            _pool.shutdown()
            _pool = None


def ranges(sizes: Iterable[int]) -> list[Range]:
    """Cut arrays of these sizes into (array, start, stop), at most 2**18 elements each."""
    return [(n, i, min(i + _SPAN, size)) for n, size in enumerate(sizes) for i in range(0, size, _SPAN)]


def parallel(work: Callable[..., T], parts: Iterable[tuple[Any, ...]]) -> list[T]:
    """`[work(*part) for part in parts]` on all threads; the kernels release the interpreter's lock."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_threads, thread_name_prefix="seedtune-noise")
    return list(_pool.map(lambda part: work(*part), parts))
