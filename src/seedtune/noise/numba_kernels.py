"""The kernels, in numba: what is done to a tile of 1,024 weights, and passes over a run of weights made of it.

They stand in one file, with the named tuples that they take, because numba's cache of a compiled function does not
notice a change in another file: with two fields swapped elsewhere, cached machine code would read the wrong ones.

The tile functions are small and separate so that LLVM vectorizes each of them. No fast-math: a multiply and an add stay
two roundings, as `spec` and every other device do them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from .spec import Purpose

F32, BF16, F16 = 0, 1, 2

BLOCKS = 128
SIZE = 8 * BLOCKS
SCRATCH = 4 * (BLOCKS + 1)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
#: Where a walk begins: for a literal 0 numba would compile what it calls once more.
_START = np.int64(0)
_NO16 = np.empty(0, np.uint16)
_NO32 = np.empty(0, np.float32)


class Weights(NamedTuple):
    """A flat run of weights: 16-bit formats by their bits, or float32; the other array is empty."""

    bits16: NDArray[np.uint16]
    values32: NDArray[np.float32]
    format: int

    @staticmethod
    def of(array: NDArray[Any], format: int) -> Weights:
        """Wrap a flat contiguous array: float32 for F32, uint16 bits for BF16 and F16."""
        return Weights(_NO16, array, F32) if format == F32 else Weights(array, _NO32, format)

    def __len__(self) -> int:
        return len(self.values32) if self.format == F32 else len(self.bits16)

    def slice(self, start: int, stop: int) -> Weights:
        return Weights(self.bits16[start:stop], self.values32[start:stop], self.format)

    def bits(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        return self.values32.view(np.uint32) if self.format == F32 else self.bits16


NO_WEIGHTS = Weights(_NO16, _NO32, F32)


class RowBlock(NamedTuple):
    """A block of rows of a matrix that is `width` wide: rows of `columns` elements, the first one at index `first`."""

    columns: int
    width: int
    first: int


#: Every element at its own index.
WHOLE = RowBlock(2**62, 0, 0)


class Factors(NamedTuple):
    """Low-rank noise of a weight [m, n] in K directions: a_K [K, m, rank], b_K [K, rank, n]; and 1 / sqrt(rank)."""

    a_K: NDArray[np.float32]
    b_K: NDArray[np.float32]
    scale: np.float32


NO_FACTORS = Factors(np.empty((0, 0, 0), np.float32), np.empty((0, 0, 0), np.float32), np.float32(0))


class Step(NamedTuple):
    """The numbers of one update that are the same for every element; float32 in the arithmetic. See `es.update`."""

    learning_rate: float
    decay: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    epsilon: float = 0.0
    correction1: float = 1.0
    correction2: float = 1.0


@numba.njit(nogil=True, cache=True)
def tile_philox(x, first, parameter, purpose, key):
    """`spec.philox4x32` on blocks `first`, `first + 1`, ...; x [4 * blocks] uint32."""
    s = np.uint64(32)
    for j in range(x.size // 4):
        block = first + np.uint64(j)
        c0, c1 = np.uint32(block), np.uint32(block >> s)
        c2, c3 = parameter, purpose
        k0, k1 = key
        for _ in range(10):
            p0 = _M0 * np.uint64(c0)
            p1 = _M1 * np.uint64(c2)
            c0 = np.uint32(p1 >> s) ^ c1 ^ k0
            c1 = np.uint32(p1)
            c2 = np.uint32(p0 >> s) ^ c3 ^ k1
            c3 = np.uint32(p0)
            k0 = np.uint32(k0 + _W0)
            k1 = np.uint32(k1 + _W1)
        x[4 * j] = c0
        x[4 * j + 1] = c1
        x[4 * j + 2] = c2
        x[4 * j + 3] = c3


@numba.njit(nogil=True, cache=True)
def tile_gather(out, words, table):
    for j in range(out.size):
        out[j] = table[words[j]]


@numba.njit(nogil=True, cache=True)
def tile_normals(out, x, index, table, parameter, purpose, key):
    """Normals of elements `index`... into `out`; x is scratch of `4 * (tile blocks + 1)` words."""
    block = np.uint64(index) >> np.uint64(3)
    skip = index & 7
    tile_philox(x[: 4 * ((skip + out.size + 7) // 8)], block, parameter, purpose, key)
    tile_gather(out, x.view(np.uint16)[skip:], table)


@numba.njit(nogil=True, cache=True)
def tile_copy(out, x):
    """`out[:] = x`, which takes numba two seconds to compile."""
    for j in range(out.size):
        out[j] = x[j]


@numba.njit(nogil=True, cache=True)
def tile_load(tile, weights, i, j):
    """Elements i to j (exclusive) of the weights into `tile`, as float32."""
    if weights.format == F32:
        tile_copy(tile, weights.values32[i:j])
        return
    bits16 = weights.bits16[i:j]
    if weights.format == BF16:
        out = tile.view(np.uint32)
        for n in range(tile.size):
            out[n] = np.uint32(bits16[n]) << np.uint32(16)
    else:
        out = tile.view(np.uint32)
        for n in range(tile.size):
            h = np.uint32(bits16[n])
            sign = (h & np.uint32(0x8000)) << np.uint32(16)
            exponent = (h >> np.uint32(10)) & np.uint32(31)
            mantissa = h & np.uint32(0x3FF)
            if exponent == 0:
                tile[n] = np.float32(mantissa) * np.float32(2.0**-24)
                out[n] |= sign
            elif exponent == 31:
                out[n] = sign | np.uint32(0x7F800000) | (mantissa << np.uint32(13))
            else:
                out[n] = sign | ((exponent + np.uint32(112)) << np.uint32(23)) | (mantissa << np.uint32(13))


@numba.njit(nogil=True, cache=True)
def tile_round_bf16(out, x):
    for j in range(out.size):
        z = x[j]
        out[j] = np.uint16((z + np.uint32(0x7FFF) + ((z >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(nogil=True, cache=True)
def tile_round_stochastically(out, x, dither):
    for j in range(out.size):
        out[j] = np.uint16(np.uint32(x[j] + np.uint32(dither[j])) >> np.uint32(16))


@numba.njit(nogil=True, cache=True)
def tile_round_f16(out, x):
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
def tile_store(weights, i, j, tile):
    """`tile`, rounded to their format, into elements i to j (exclusive) of the weights."""
    if weights.format == F32:
        tile_copy(weights.values32[i:j], tile)
    elif weights.format == BF16:
        tile_round_bf16(weights.bits16[i:j], tile.view(np.uint32))
    else:
        tile_round_f16(weights.bits16[i:j], tile.view(np.uint32))


@numba.njit(nogil=True, cache=True)
def tile_scaled_add(tile, noise, scale):
    for j in range(tile.size):
        tile[j] = tile[j] + scale * noise[j]


@numba.njit(nogil=True, cache=True)
def tile_step(tile, g, m, v, anchor, step):
    """`es.update.apply` on one tile; m and v are empty where the rule keeps no such state."""
    one = np.float32(1)
    for j in range(tile.size):
        d = g[j]
        if v.size > 0:
            m[j] = step.beta1 * m[j] + (one - step.beta1) * d
            v[j] = step.beta2 * v[j] + (one - step.beta2) * (d * d)
            d = (m[j] / step.correction1) / (np.sqrt(v[j] / step.correction2) + step.epsilon)
        elif m.size > 0:
            m[j] = step.beta1 * m[j] + d
            d = m[j]
        if step.decay != 0:
            d = d - step.decay * (tile[j] - anchor[j])
        tile[j] = tile[j] + step.learning_rate * d


@numba.njit(nogil=True, cache=True)
def tile_add_low_rank(g, e, a, b, column, scale, c):
    """g + c * `spec.low_rank` on a run of one row, from `column` on: a [rank] is its row of A, b [rank, columns] is B.

    `e` is scratch. Rank 1 in one loop: the same roundings, less time. Rows of b are sliced one by one: numba then
    knows that they are contiguous, and LLVM vectorizes.
    """
    first = b[0, column : column + g.size]
    if a.size == 1:
        for i in range(g.size):
            g[i] = g[i] + c * ((a[0] * first[i]) * scale)
        return
    for i in range(g.size):
        e[i] = a[0] * first[i]
    for j in range(1, a.size):
        row = b[j, column : column + g.size]
        for i in range(g.size):
            e[i] = e[i] + a[j] * row[i]
    for i in range(g.size):
        g[i] = g[i] + c * (e[i] * scale)


@numba.njit(nogil=True, cache=True)
def tile_sum_sq_delta(before, after):
    """The sum of squared differences, in eight sums of every eighth element: one sum would wait for itself."""
    sums = np.zeros(8)
    whole = before.size - before.size % 8
    for i in range(0, whole, 8):
        for lane in range(8):
            d = np.float64(after[i + lane] - before[i + lane])
            sums[lane] += d * d
    for i in range(whole, before.size):
        d = np.float64(after[i] - before[i])
        sums[i - whole] += d * d
    return sums.sum()


# --- passes over a run of weights -------------------------------------------------------------------------------------
#
# `start` is the index of the run's first element in the row block (`WHOLE`: in the parameter). A tile stays in its row.


@numba.njit(nogil=True, cache=True)
def global_index(i, row_block):
    """The index, in the whole parameter, of element i of a row block, and how many elements of its row are left."""
    row = i // row_block.columns
    column = i - row * row_block.columns
    return row_block.first + row * row_block.width + column, row_block.columns - column


@numba.njit(nogil=True, cache=True)
def normals(out, start, table, parameter, purpose, key):
    x = np.empty(SCRATCH, np.uint32)
    for i in range(0, out.size, SIZE):
        tile_normals(out[i : i + SIZE], x, start + i, table, parameter, purpose, key)


@numba.njit(nogil=True, cache=True)
def perturb(out, source, scale, table, parameter, key, start, row_block):
    x = np.empty(SCRATCH, np.uint32)
    noise_buffer = np.empty(SIZE, np.float32)
    tile_buffer = np.empty(SIZE, np.float32)
    size = out.bits16.size + out.values32.size
    i = _START
    while i < size:
        index, left = global_index(start + i, row_block)
        j = min(i + SIZE, size, i + left)
        tile, noise = tile_buffer[: j - i], noise_buffer[: j - i]
        tile_load(tile, source, i, j)
        if scale != 0:
            tile_normals(noise, x, index, table, parameter, np.uint32(Purpose.FULL), key)
            tile_scaled_add(tile, noise, scale)
        tile_store(out, i, j, tile)
        i = j


@numba.njit(nogil=True, cache=True)
def update(
    weights,
    keys_K,
    coefficients_K,
    table,
    parameter,
    step,
    m,
    v,
    anchor,
    start,
    factors,
    stochastic,
    rounding,
    row_block,
):
    x = np.empty(SCRATCH, np.uint32)
    noise_buffer = np.empty(SIZE, np.float32)
    sum_buffer = np.empty(SIZE, np.float32)
    tile_buffer = np.empty(SIZE, np.float32)
    anchor_buffer = np.zeros(SIZE, np.float32)
    size = weights.bits16.size + weights.values32.size
    anchored = anchor.bits16.size + anchor.values32.size > 0
    sum_sq_delta = 0.0
    rank, wide = factors.a_K.shape[2], factors.b_K.shape[2]
    i = _START
    while i < size:
        index, left = global_index(start + i, row_block)
        j = min(i + SIZE, size, i + left)
        row, column = 0, 0
        if rank > 0:
            row, column = (start + i) // wide, (start + i) % wide
            j = min(j, i + wide - column)
        n = j - i
        g, noise, tile = sum_buffer[:n], noise_buffer[:n], tile_buffer[:n]
        g[:] = 0
        for q in range(coefficients_K.size):
            c = coefficients_K[q]
            if rank > 0:
                tile_add_low_rank(g, noise, factors.a_K[q, row], factors.b_K[q], column, factors.scale, c)
            else:
                key = (keys_K[q, 0], keys_K[q, 1])
                tile_normals(noise, x, index, table, parameter, np.uint32(Purpose.FULL), key)
                tile_scaled_add(g, noise, c)
        tile_load(tile, weights, i, j)
        if anchored:
            tile_load(anchor_buffer[:n], anchor, i, j)
        tile_copy(noise, tile)
        tile_step(tile, g, m[i:j], v[i:j], anchor_buffer[:n], step)
        sum_sq_delta += tile_sum_sq_delta(noise, tile)
        if stochastic:
            block, skip = np.uint64(index) >> np.uint64(3), index & 7
            tile_philox(x[: 4 * ((skip + n + 7) // 8)], block, parameter, np.uint32(Purpose.ROUNDING), rounding)
            tile_round_stochastically(weights.bits16[i:j], tile.view(np.uint32), x.view(np.uint16)[skip:])
        else:
            tile_store(weights, i, j, tile)
        i = j
    return sum_sq_delta


@numba.njit(nogil=True, cache=True)
def digest(bits, parameter, start, row_block):
    total = np.uint64(0)
    high = np.uint64(parameter) << np.uint64(32)
    i = _START
    while i < bits.size:
        index, left = global_index(start + i, row_block)
        j = min(bits.size, i + left)
        for n in range(j - i):
            x = high | np.uint64(bits[i + n])
            x = x + (np.uint64(index) + np.uint64(n) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            total += x ^ (x >> np.uint64(31))
        i = j
    return total
