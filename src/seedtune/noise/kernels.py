"""The kernels, in numba: what is done to a tile of 1,024 weights, and passes over a run of weights made of it.

They stand in one file because numba's cache of a compiled function does not notice a change in another file.

The tile functions are small and separate so that LLVM vectorises each of them. No fast-math: a multiply and an add stay
two roundings, as `spec` and every other device do them.
"""

from __future__ import annotations

import numba
import numpy as np

from .spec import Purpose

F32, BF16, F16 = 0, 1, 2

BLOCKS = 128
SIZE = 8 * BLOCKS
SCRATCH = 4 * (BLOCKS + 1)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)


@numba.njit(nogil=True, cache=True)
def tile_philox(x, first, parameter, purpose, k0, k1):  # type: ignore[no-untyped-def]
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
def tile_gather(out, words, table):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] = table[words[j]]


@numba.njit(nogil=True, cache=True)
def tile_normals(out, x, index, table, parameter, purpose, k0, k1):  # type: ignore[no-untyped-def]
    """Normals of elements `index`... into `out`; x is scratch of `4 * (tile blocks + 1)` words."""
    block = np.uint64(index) >> np.uint64(3)
    skip = index & 7
    tile_philox(x[: 4 * ((skip + out.size + 7) // 8)], block, parameter, purpose, k0, k1)
    tile_gather(out, x.view(np.uint16)[skip:], table)


@numba.njit(nogil=True, cache=True)
def tile_load(tile, bits16, values32, format):  # type: ignore[no-untyped-def]
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
def tile_round_bf16(out, x):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        z = x[j]
        out[j] = np.uint16((z + np.uint32(0x7FFF) + ((z >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(nogil=True, cache=True)
def tile_round_stochastically(out, x, dither):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] = np.uint16(np.uint32(x[j] + np.uint32(dither[j])) >> np.uint32(16))


@numba.njit(nogil=True, cache=True)
def tile_round_f16(out, x):  # type: ignore[no-untyped-def]
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
def tile_store(bits16, values32, format, tile):  # type: ignore[no-untyped-def]
    if format == F32:
        values32[:] = tile
    elif format == BF16:
        tile_round_bf16(bits16, tile.view(np.uint32))
    else:
        tile_round_f16(bits16, tile.view(np.uint32))


@numba.njit(nogil=True, cache=True)
def tile_scaled_add(tile, noise, scale):  # type: ignore[no-untyped-def]
    for j in range(tile.size):
        tile[j] = tile[j] + scale * noise[j]


@numba.njit(nogil=True, cache=True)
def tile_step(tile, g, m, v, anchor, rate, decay, beta1, beta2, epsilon, correction1, correction2):  # type: ignore[no-untyped-def]
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
def tile_add_low_rank(g, e, a, b, column, scale, c):  # type: ignore[no-untyped-def]
    """g + c * `spec.low_rank` on a run of one row, from `column` on: a [rank] is its row of A, b [rank, columns] is B.

    `e` is scratch. Rank 1 in one loop: the same roundings, less time. Rows of b are cut one by one: numba then knows
    that they are contiguous, and LLVM vectorises.
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
def tile_moved(before, after):  # type: ignore[no-untyped-def]
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
# A run may be cut from a matrix: rows of `columns` elements, `width` apart in the whole parameter, the first one at
# index `first`. A tile stays in its row.


@numba.njit(nogil=True, cache=True)
def whereabouts(i, columns, width, first):  # type: ignore[no-untyped-def]
    """The index, in the whole parameter, of element i of a cut, and how many more stand in its row."""
    row = i // columns
    column = i - row * columns
    return first + row * width + column, columns - column


@numba.njit(nogil=True, cache=True)
def normals(out, start, table, parameter, purpose, k0, k1):  # type: ignore[no-untyped-def]
    x = np.empty(SCRATCH, np.uint32)
    for i in range(0, out.size, SIZE):
        tile_normals(out[i : i + SIZE], x, start + i, table, parameter, purpose, k0, k1)


@numba.njit(nogil=True, cache=True)
def perturb(  # type: ignore[no-untyped-def]
    out16,
    out32,
    out_format,
    in16,
    in32,
    in_format,
    size,
    scale,
    start,
    columns,
    width,
    first,
    table,
    parameter,
    k0,
    k1,
):
    x = np.empty(SCRATCH, np.uint32)
    noise_tile = np.empty(SIZE, np.float32)
    tile_buffer = np.empty(SIZE, np.float32)
    i = 0
    while i < size:
        index, left = whereabouts(start + i, columns, width, first)
        j = min(i + SIZE, size, i + left)
        tile, noise = tile_buffer[: j - i], noise_tile[: j - i]
        tile_load(tile, in16[i:j], in32[i:j], in_format)
        if scale != 0:
            tile_normals(noise, x, index, table, parameter, np.uint32(Purpose.FULL), k0, k1)
            tile_scaled_add(tile, noise, scale)
        tile_store(out16[i:j], out32[i:j], out_format, tile)
        i = j


@numba.njit(nogil=True, cache=True)
def update(  # type: ignore[no-untyped-def]
    w16,
    w32,
    w_format,
    size,
    k0s,
    k1s,
    a_K,
    b_K,
    scale,
    coefficients,
    start,
    columns,
    width,
    first,
    table,
    parameter,
    m,
    v,
    a16,
    a32,
    a_format,
    stochastic,
    r0,
    r1,
    rate,
    decay,
    beta1,
    beta2,
    epsilon,
    correction1,
    correction2,
):
    x = np.empty(SCRATCH, np.uint32)
    noise_buffer = np.empty(SIZE, np.float32)
    sum_buffer = np.empty(SIZE, np.float32)
    tile_buffer = np.empty(SIZE, np.float32)
    anchor_buffer = np.zeros(SIZE, np.float32)
    anchored = a16.size + a32.size > 0
    moved = 0.0
    rank, wide = a_K.shape[2], b_K.shape[2]
    i = 0
    while i < size:
        index, left = whereabouts(start + i, columns, width, first)
        j = min(i + SIZE, size, i + left)
        row, column = 0, 0
        if rank > 0:
            row, column = (start + i) // wide, (start + i) % wide
            j = min(j, i + wide - column)
        n = j - i
        g, noise, tile = sum_buffer[:n], noise_buffer[:n], tile_buffer[:n]
        g[:] = 0
        for q in range(coefficients.size):
            if rank > 0:
                tile_add_low_rank(g, noise, a_K[q, row], b_K[q], column, scale, coefficients[q])
            else:
                tile_normals(noise, x, index, table, parameter, np.uint32(Purpose.FULL), k0s[q], k1s[q])
                tile_scaled_add(g, noise, coefficients[q])
        tile_load(tile, w16[i:j], w32[i:j], w_format)
        if anchored:
            tile_load(anchor_buffer[:n], a16[i:j], a32[i:j], a_format)
        noise[:] = tile
        tile_step(
            tile, g, m[i:j], v[i:j], anchor_buffer[:n], rate, decay, beta1, beta2, epsilon, correction1, correction2
        )
        moved += tile_moved(noise, tile)
        if stochastic:
            block, skip = np.uint64(index) >> np.uint64(3), index & 7
            tile_philox(x[: 4 * ((skip + n + 7) // 8)], block, parameter, np.uint32(Purpose.ROUNDING), r0, r1)
            tile_round_stochastically(w16[i:j], tile.view(np.uint32), x.view(np.uint16)[skip:])
        else:
            tile_store(w16[i:j], w32[i:j], w_format, tile)
        i = j
    return moved


@numba.njit(nogil=True, cache=True)
def digest(bits, parameter, start, columns, width, first):  # type: ignore[no-untyped-def]
    total = np.uint64(0)
    high = np.uint64(parameter) << np.uint64(32)
    i = 0
    while i < bits.size:
        index, left = whereabouts(start + i, columns, width, first)
        j = min(bits.size, i + left)
        for n in range(j - i):
            x = high | np.uint64(bits[i + n])
            x = x + (np.uint64(index) + np.uint64(n) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            total += x ^ (x >> np.uint64(31))
        i = j
    return total
