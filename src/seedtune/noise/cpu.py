"""The noise stream in numba, fused with what uses it; the same bits as `spec`, whatever the split into ranges.

Weights are walked in tiles of 1,024 elements that stay in the first-level cache: words (Philox), normals (table),
arithmetic, store. The small loops are separate functions so that LLVM vectorises each of them. No fast-math: a
multiply and an add stay two roundings, as `spec` and every other device do them.

All functions work on flat arrays. `start` is the index, in the whole parameter, of the first element given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from . import spec
from .spec import Key, Purpose

F32, BF16, F16 = 0, 1, 2

_TILE_BLOCKS = 128
_TILE = 8 * _TILE_BLOCKS
_NO16 = np.empty(0, np.uint16)
_NO32 = np.empty(0, np.float32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)


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


# --- tiles ------------------------------------------------------------------------------------------------------------


@numba.njit(nogil=True, cache=True)
def _philox_tile(x, first, parameter, purpose, k0, k1):  # type: ignore[no-untyped-def]
    """`spec.philox4x32` on blocks `first`, `first + 1`, ...; x [4 * blocks] uint32."""
    s = np.uint64(32)
    for j in range(x.size // 4):
        block = first + np.uint64(j)
        c0, c1 = np.uint32(block), np.uint32(block >> s)
        c2, c3 = parameter, purpose
        a0, a1 = k0, k1
        for _ in range(10):
            p0 = _M0 * np.uint64(c0)
            p1 = _M1 * np.uint64(c2)
            c0 = np.uint32(p1 >> s) ^ c1 ^ a0
            c1 = np.uint32(p1)
            c2 = np.uint32(p0 >> s) ^ c3 ^ a1
            c3 = np.uint32(p0)
            a0 = np.uint32(a0 + _W0)
            a1 = np.uint32(a1 + _W1)
        x[4 * j] = c0
        x[4 * j + 1] = c1
        x[4 * j + 2] = c2
        x[4 * j + 3] = c3


@numba.njit(nogil=True, cache=True)
def _gather(out, words, table):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] = table[words[j]]


@numba.njit(nogil=True, cache=True)
def _normals_tile(out, x, index, table, parameter, purpose, k0, k1):  # type: ignore[no-untyped-def]
    """Normals of elements `index`... into `out`; x is scratch of `4 * (tile blocks + 1)` words."""
    block = np.uint64(index) >> np.uint64(3)
    skip = index & 7
    _philox_tile(x[: 4 * ((skip + out.size + 7) // 8)], block, parameter, purpose, k0, k1)
    _gather(out, x.view(np.uint16)[skip:], table)


@numba.njit(nogil=True, cache=True)
def _load(tile, bits16, values32, format):  # type: ignore[no-untyped-def]
    if format == F32:
        tile[:] = values32
    elif format == BF16:
        out = tile.view(np.uint32)
        for j in range(tile.size):
            out[j] = np.uint32(bits16[j]) << np.uint32(16)
    else:
        out = tile.view(np.uint32)
        for j in range(tile.size):
            h = np.uint32(bits16[j])
            sign = (h & np.uint32(0x8000)) << np.uint32(16)
            exponent = (h >> np.uint32(10)) & np.uint32(31)
            mantissa = h & np.uint32(0x3FF)
            if exponent == 0:
                tile[j] = np.float32(mantissa) * np.float32(2.0**-24)
                out[j] |= sign
            elif exponent == 31:
                out[j] = sign | np.uint32(0x7F800000) | (mantissa << np.uint32(13))
            else:
                out[j] = sign | ((exponent + np.uint32(112)) << np.uint32(23)) | (mantissa << np.uint32(13))


@numba.njit(nogil=True, cache=True)
def _round_bf16(out, x):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        z = x[j]
        out[j] = np.uint16((z + np.uint32(0x7FFF) + ((z >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(nogil=True, cache=True)
def _round_f16(out, x):  # type: ignore[no-untyped-def]
    """IEEE float32 to float16, to nearest, ties to even, subnormals and overflow included."""
    for j in range(out.size):
        sign = np.uint32(x[j] >> np.uint32(16)) & np.uint32(0x8000)
        z = np.uint32(x[j] & np.uint32(0x7FFFFFFF))
        if z >= np.uint32(0x47800000):
            h = np.uint32(0x7C00)
        elif z >= np.uint32(0x38800000):
            z = np.uint32(z - np.uint32(0x38000000))
            h = np.uint32(z + np.uint32(0xFFF) + ((z >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
        elif z < np.uint32(0x33000000):
            h = np.uint32(0)
        else:
            shift = np.uint32(126) - (z >> np.uint32(23))
            mantissa = (z & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
            half = np.uint32(1) << (shift - np.uint32(1))
            rest = mantissa & ((np.uint32(1) << shift) - np.uint32(1))
            h = mantissa >> shift
            if rest > half or (rest == half and (h & np.uint32(1)) == 1):
                h = np.uint32(h + np.uint32(1))
        out[j] = np.uint16(sign | h)


@numba.njit(nogil=True, cache=True)
def _store(bits16, values32, format, tile):  # type: ignore[no-untyped-def]
    if format == F32:
        values32[:] = tile
    elif format == BF16:
        _round_bf16(bits16, tile.view(np.uint32))
    else:
        _round_f16(bits16, tile.view(np.uint32))


@numba.njit(nogil=True, cache=True)
def _scaled_add(tile, noise, scale):  # type: ignore[no-untyped-def]
    for j in range(tile.size):
        tile[j] = tile[j] + scale * noise[j]


# --- passes over a run of weights -------------------------------------------------------------------------------------


@numba.njit(nogil=True, cache=True)
def _normals(out, start, table, parameter, purpose, k0, k1):  # type: ignore[no-untyped-def]
    x = np.empty(4 * (_TILE_BLOCKS + 1), np.uint32)
    for i in range(0, out.size, _TILE):
        _normals_tile(out[i : i + _TILE], x, start + i, table, parameter, purpose, k0, k1)


@numba.njit(nogil=True, cache=True)
def _perturb(out16, out32, out_format, in16, in32, in_format, size, scale, start, table, parameter, k0, k1):  # type: ignore[no-untyped-def]
    x = np.empty(4 * (_TILE_BLOCKS + 1), np.uint32)
    noise_tile = np.empty(_TILE, np.float32)
    tile_buffer = np.empty(_TILE, np.float32)
    for i in range(0, size, _TILE):
        j = min(i + _TILE, size)
        tile, noise = tile_buffer[: j - i], noise_tile[: j - i]
        _load(tile, in16[i:j], in32[i:j], in_format)
        if scale != 0:
            _normals_tile(noise, x, start + i, table, parameter, np.uint32(Purpose.FULL), k0, k1)
            _scaled_add(tile, noise, scale)
        _store(out16[i:j], out32[i:j], out_format, tile)


@numba.njit(nogil=True, cache=True)
def _step(tile, g, m, v, anchor, rate, decay, beta1, beta2, epsilon, correction1, correction2):  # type: ignore[no-untyped-def]
    """`es.update.apply` on one tile; m and v are empty where the rule keeps no such state."""
    one = np.float32(1)
    for j in range(tile.size):
        step = g[j]
        if v.size > 0:
            m[j] = beta1 * m[j] + (one - beta1) * step
            v[j] = beta2 * v[j] + (one - beta2) * (step * step)
            step = (m[j] / correction1) / (np.sqrt(v[j] / correction2) + epsilon)
        elif m.size > 0:
            m[j] = beta1 * m[j] + step
            step = m[j]
        if decay != 0:
            step = step - decay * (tile[j] - anchor[j])
        tile[j] = tile[j] + rate * step


@numba.njit(nogil=True, cache=True)
def _update(  # type: ignore[no-untyped-def]
    w16,
    w32,
    w_format,
    size,
    k0s,
    k1s,
    coefficients,
    start,
    table,
    parameter,
    m,
    v,
    a16,
    a32,
    a_format,
    rate,
    decay,
    beta1,
    beta2,
    epsilon,
    correction1,
    correction2,
):
    x = np.empty(4 * (_TILE_BLOCKS + 1), np.uint32)
    noise_buffer = np.empty(_TILE, np.float32)
    sum_buffer = np.empty(_TILE, np.float32)
    tile_buffer = np.empty(_TILE, np.float32)
    anchor_buffer = np.zeros(_TILE, np.float32)
    anchored = a16.size + a32.size > 0
    moved = 0.0
    for i in range(0, size, _TILE):
        j = min(i + _TILE, size)
        n = j - i
        g, noise, tile = sum_buffer[:n], noise_buffer[:n], tile_buffer[:n]
        g[:] = 0
        for q in range(coefficients.size):
            _normals_tile(noise, x, start + i, table, parameter, np.uint32(Purpose.FULL), k0s[q], k1s[q])
            _scaled_add(g, noise, coefficients[q])
        _load(tile, w16[i:j], w32[i:j], w_format)
        if anchored:
            _load(anchor_buffer[:n], a16[i:j], a32[i:j], a_format)
        noise[:] = tile
        _step(tile, g, m[i:j], v[i:j], anchor_buffer[:n], rate, decay, beta1, beta2, epsilon, correction1, correction2)
        for q in range(n):
            moved += np.float64(tile[q] - noise[q]) ** 2
        _store(w16[i:j], w32[i:j], w_format, tile)
    return moved


@numba.njit(nogil=True, cache=True)
def _digest(bits, parameter, start):  # type: ignore[no-untyped-def]
    total = np.uint64(0)
    high = np.uint64(parameter) << np.uint64(32)
    for i in range(bits.size):
        x = high | np.uint64(bits[i])
        x = x + (np.uint64(start) + np.uint64(i) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += x ^ (x >> np.uint64(31))
    return total


# --- what the rest of the library calls -------------------------------------------------------------------------------


def normals(out: NDArray[np.float32], key: Key, parameter: int, purpose: Purpose, start: int = 0) -> None:
    """Fill `out` with the normals of elements `start`...; as `spec.normals`."""
    _normals(out, start, spec.table(), np.uint32(parameter), np.uint32(purpose), np.uint32(key[0]), np.uint32(key[1]))


def perturb(out: Weights, source: Weights, scale: float, key: Key, parameter: int, start: int = 0) -> None:
    """out = round(source + float32(scale) * noise). `out` and `source` may be the same weights; scale 0 only rounds."""
    _perturb(
        *out,
        *source,
        len(out),
        np.float32(scale),
        start,
        spec.table(),
        np.uint32(parameter),
        np.uint32(key[0]),
        np.uint32(key[1]),
    )


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
) -> float:
    """Apply one update in place, in one pass, the noise of all members regenerated inside it.

    g = sum over directions q, in order, of coefficients[q] * noise[q]; then `es.update.apply`. Returns the sum of the
    squares of what each weight moved (a statistic; float64).
    """
    k0s = np.array([k[0] for k in keys], np.uint32)
    k1s = np.array([k[1] for k in keys], np.uint32)
    return float(
        _update(
            *weights,
            len(weights),
            k0s,
            k1s,
            coefficients.astype(np.float32),
            start,
            spec.table(),
            np.uint32(parameter),
            momentum,
            second_moment,
            *anchor,
            *(np.float32(x) for x in step),
        )
    )


def digest(weights: Weights, parameter: int, start: int = 0) -> int:
    """As `spec.digest`."""
    return int(_digest(weights.bits(), parameter, start))


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


def parallel(work: Callable[[int, int, int], T], parts: list[Range]) -> list[T]:
    """`[work(*part) for part in parts]` on all threads; the kernels release the interpreter's lock."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_threads, thread_name_prefix="seedtune-noise")
    return list(_pool.map(lambda part: work(*part), parts))
