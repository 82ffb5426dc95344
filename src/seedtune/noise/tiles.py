"""What is done to one tile of 1,024 weights, in numba: words, normals, formats, steps. `cpu` strings these together.

They are separate small functions so that LLVM vectorises each of them. No fast-math: a multiply and an add stay two
roundings, as `spec` and every other device do them.
"""

from __future__ import annotations

import numba
import numpy as np

F32, BF16, F16 = 0, 1, 2

BLOCKS = 128
SIZE = 8 * BLOCKS
SCRATCH = 4 * (BLOCKS + 1)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)


@numba.njit(nogil=True, cache=True)
def philox(x, first, parameter, purpose, k0, k1):  # type: ignore[no-untyped-def]
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
def gather(out, words, table):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] = table[words[j]]


@numba.njit(nogil=True, cache=True)
def normals(out, x, index, table, parameter, purpose, k0, k1):  # type: ignore[no-untyped-def]
    """Normals of elements `index`... into `out`; x is scratch of `4 * (tile blocks + 1)` words."""
    block = np.uint64(index) >> np.uint64(3)
    skip = index & 7
    philox(x[: 4 * ((skip + out.size + 7) // 8)], block, parameter, purpose, k0, k1)
    gather(out, x.view(np.uint16)[skip:], table)


@numba.njit(nogil=True, cache=True)
def load(tile, bits16, values32, format):  # type: ignore[no-untyped-def]
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
def round_bf16(out, x):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        z = x[j]
        out[j] = np.uint16((z + np.uint32(0x7FFF) + ((z >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(nogil=True, cache=True)
def round_f16(out, x):  # type: ignore[no-untyped-def]
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
def store(bits16, values32, format, tile):  # type: ignore[no-untyped-def]
    if format == F32:
        values32[:] = tile
    elif format == BF16:
        round_bf16(bits16, tile.view(np.uint32))
    else:
        round_f16(bits16, tile.view(np.uint32))


@numba.njit(nogil=True, cache=True)
def scaled_add(tile, noise, scale):  # type: ignore[no-untyped-def]
    for j in range(tile.size):
        tile[j] = tile[j] + scale * noise[j]


@numba.njit(nogil=True, cache=True)
def step(tile, g, m, v, anchor, rate, decay, beta1, beta2, epsilon, correction1, correction2):  # type: ignore[no-untyped-def]
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
def low_rank(out, a, b, scale):  # type: ignore[no-untyped-def]
    """`spec.low_rank` on a run of one row: a [rank] is its row of A, b [rank, columns] the columns of B."""
    for i in range(out.size):
        out[i] = a[0] * b[0, i]
    for j in range(1, a.size):
        for i in range(out.size):
            out[i] = out[i] + a[j] * b[j, i]
    for i in range(out.size):
        out[i] = out[i] * scale
