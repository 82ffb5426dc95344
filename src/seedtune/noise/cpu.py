"""The noise stream in numba, fused with what uses it; the same bits as `spec`, whatever the split into ranges.

Weights are walked in tiles of 1,024 elements that stay in the first-level cache: words (Philox), normals (table),
arithmetic, store. The kernels are in `numba_kernels`.

All functions work on flat arrays. `start` is the index of the first element given: in the whole parameter, or in a
`RowBlock` of it, as a shard of a model that is spread over several devices holds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import numba_kernels, spec
from .numba_kernels import BF16, F16, F32, NO_FACTORS, NO_WEIGHTS, WHOLE, Factors, RowBlock, Step, Weights
from .spec import Key, Purpose

#: Defined beside the kernels and used through this module.
__all__ = ["BF16", "F16", "F32", "NO_WEIGHTS", "WHOLE", "Factors", "RowBlock", "Step", "Weights"]

_NO_MOMENT = np.empty(0, np.float32)


# --- what the rest of the library calls -------------------------------------------------------------------------------


def normals(out: NDArray[np.float32], key: Key, parameter: int, purpose: Purpose, start: int = 0) -> None:
    """Fill `out` with the normals of elements `start`...; as `spec.normals`."""
    numba_kernels.normals(out, start, spec.table(), np.uint32(parameter), np.uint32(purpose), _words(key))


def low_rank_factors(keys: list[Key], parameter: int, shape: tuple[int, int], rank: int) -> Factors:
    """As `spec.factors`, B transposed so that a row of it is contiguous."""
    m, n = shape
    a_K = np.empty((len(keys), m, rank), np.float32)
    b_K = np.empty((len(keys), n, rank), np.float32)
    for q, key in enumerate(keys):
        normals(a_K[q].reshape(-1), key, parameter, Purpose.FACTOR_A)
        normals(b_K[q].reshape(-1), key, parameter, Purpose.FACTOR_B)
    return Factors(a_K, np.ascontiguousarray(b_K.transpose(0, 2, 1)), spec.rank_scale(rank))


def perturb(
    out: Weights, source: Weights, scale: float, key: Key, parameter: int, start: int = 0, row_block: RowBlock = WHOLE
) -> None:
    """out = round(source + float32(scale) * noise). `out` and `source` may be the same weights; scale 0 only rounds."""
    table, number = spec.table(), np.uint32(parameter)
    numba_kernels.perturb(out, source, np.float32(scale), table, number, _words(key), start, row_block)


def update(
    weights: Weights,
    keys: list[Key],
    coefficients: NDArray[np.float32],
    parameter: int,
    step: Step,
    momentum: NDArray[np.float32] = _NO_MOMENT,
    second_moment: NDArray[np.float32] = _NO_MOMENT,
    anchor: Weights = NO_WEIGHTS,
    start: int = 0,
    factors: Factors | None = None,
    rounding: Key | None = None,
    row_block: RowBlock = WHOLE,
) -> float:
    """Apply one update in place, in one pass, the noise of all members regenerated inside it.

    g = sum over directions q, in order, of coefficients[q] * noise[q]; then `es.update.apply`. With `factors` the noise
    is low-rank, `spec.low_rank` (of a row block: the factors of its rows and columns); with `rounding` bfloat16 weights
    are rounded as `spec.round_stochastically` does, by that key. Returns the sum of the squared changes of the weights
    (a statistic; float64).
    """
    return float(
        numba_kernels.update(
            weights,
            np.array(keys, np.uint32).reshape(-1, 2),
            coefficients.astype(np.float32),
            spec.table(),
            np.uint32(parameter),
            Step(*(np.float32(x) for x in step)),  # type: ignore[arg-type]  # as Numba takes them
            momentum,
            second_moment,
            anchor,
            start,
            factors or NO_FACTORS,
            rounding is not None,
            _words(rounding or (0, 0)),
            row_block,
        )
    )


def digest(weights: Weights, parameter: int, start: int = 0, row_block: RowBlock = WHOLE) -> int:
    """As `spec.digest`."""
    return int(numba_kernels.digest(weights.bits(), parameter, start, row_block))


def _words(key: Key) -> tuple[np.uint32, np.uint32]:
    return np.uint32(key[0]), np.uint32(key[1])


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


def _forget_pool() -> None:
    """In a process that was forked: it has the pool, and none of its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def ranges(sizes: Iterable[int]) -> list[Range]:
    """Split arrays of these sizes into (array, start, stop), at most 2**18 elements each."""
    return [(n, i, min(i + _SPAN, size)) for n, size in enumerate(sizes) for i in range(0, size, _SPAN)]


def parallel(work: Callable[..., T], parts: Iterable[tuple[Any, ...]]) -> list[T]:
    """`[work(*part) for part in parts]` on all threads; the kernels release the interpreter's lock."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_threads, thread_name_prefix="seedtune-noise")
    return list(_pool.map(lambda part: work(*part), parts))
