"""The noise stream in Triton: sums of members' noise in one pass over the weights, with the bits of `spec`.

What `torch_ops` does in torch's own operations takes many passes over memory per member; here words and normals stay in
registers. A multiply and an add stay two roundings: `enable_fp_fusion=False`, and a test checks the compiled code.
Tests run Triton's interpreter and the compiler, without a GPU; on a GPU `torch_ops.noise_sums` compares bits before it
uses these kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl

from .cpu import Factors, RowBlock
from .spec import Key
from .torch_ops import NoiseSums, Terms, factor_rows, row_span, table_on

#: What a program works on: elements, of low-rank noise; at most so many blocks of eight words.
TILE, BLOCKS = 1024, 256
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def words(seed, block, parameter, purpose):
    """The 16-bit words of blocks [B] of a parameter: the first four of each block and the last four, [4 B] each, so
    that a thread holds as many neighbors as it can load at once. As `spec.words`.
    """
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(low) + parameter.to(tl.uint32), tl.zeros_like(low) + purpose
    c0, c1, c2, c3 = tl.philox(seed, low, high, c2, c3)
    return four(c0, c1), four(c2, c3)


@triton.jit
def four(a, b):
    """The halves of two outputs, in order."""
    halves = tl.join(tl.join(a & 0xFFFF, a >> 16), tl.join(b & 0xFFFF, b >> 16))  # [B, half, output]
    return tl.ravel(tl.permute(halves, (0, 2, 1)))


@triton.jit
def rounded(values, dtype: tl.constexpr):
    """To bfloat16 as `spec.round_to_bfloat16`: Triton's own rounding differs between a device and the interpreter."""
    if dtype == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return values.to(dtype)


@triton.jit(do_not_specialize=["members", "parameter", "tiles"])
def full_kernel(
    out, source, seeds, coefficients, table, members, parameter, first, columns, width, tiles,
    from_source: tl.constexpr, blocks: tl.constexpr,
):  # fmt: skip
    """One tile of one row: out = round(source + sum of coefficient * noise), in float32, in the order of members."""
    program = tl.program_id(0).to(tl.int64)
    row, tile = program // tiles, program % tiles
    start = first + row * width
    begin = (start >> 3) + tile * blocks
    quad = tl.arange(0, 4 * blocks)
    left = (begin << 3) - start + quad // 4 * 8 + quad % 4
    right = left + 4
    left_held, right_held = (left >= 0) & (left < columns), (right >= 0) & (right < columns)
    left_at, right_at = row * columns + left, row * columns + right
    left_sum, right_sum = tl.zeros((4 * blocks,), tl.float32), tl.zeros((4 * blocks,), tl.float32)
    if from_source:
        left_sum = tl.load(source + left_at, left_held, 0).to(tl.float32)
        right_sum = tl.load(source + right_at, right_held, 0).to(tl.float32)
    for q in range(members):
        left_words, right_words = words(tl.load(seeds + q), begin + tl.arange(0, blocks), parameter, 0)
        coefficient = tl.load(coefficients + q)
        left_sum = left_sum + tl.load(table + left_words) * coefficient
        right_sum = right_sum + tl.load(table + right_words) * coefficient
    tl.store(out + left_at, rounded(left_sum, out.dtype.element_ty), left_held)
    tl.store(out + right_at, rounded(right_sum, out.dtype.element_ty), right_held)


def full(
    out: torch.Tensor, source: torch.Tensor | None, terms: Terms, parameter: int, start: int, row_block: RowBlock
) -> None:
    """As `torch_ops.full`. `out` and `source` are flat and contiguous, on one device; `out` holds whole rows of the cut
    from `start` on, or a part of one.
    """
    if len(terms.keys) != len(terms.coefficients):
        raise ValueError(f"{len(terms.keys)} keys and {len(terms.coefficients)} coefficients")
    if not len(out):
        return
    first, rows, columns = row_span(len(out), start, row_block)
    aligned = first % 8 == 0 and (rows == 1 or row_block.width % 8 == 0)
    before = 0 if aligned else 7  # elements of the first block, at most
    blocks = min(BLOCKS, max(16, triton.next_power_of_2(triton.cdiv(columns + before, 8))))
    tiles = triton.cdiv(columns + before, 8 * blocks)
    sent = (*_on_device(tuple(terms.keys), tuple(terms.coefficients), out.device), table_on(out.device))
    signed = parameter - (parameter >> 31 << 32)  # so that it is always 32 bits wide
    with torch.cuda.device_of(out):
        full_kernel[(rows * tiles,)](
            out, out if source is None else source, *sent, len(terms.keys), signed, first, columns, row_block.width,
            tiles, source is not None, blocks, **OPTIONS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["members", "skip"])
def low_rank_kernel(out, a, b, coefficients, members, size, skip, rows, wide, rank, scale, tile: tl.constexpr):
    """out = sum of coefficient * A B^T * scale, in the order of members and ranks; a_K [K, rows, rank], b_K [K, rank,
    wide]. The first element is number `skip` of the first row.
    """
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    held, row, column = at < size, (at + skip) // wide, (at + skip) % wide
    total = tl.zeros((tile,), tl.float32)
    for q in range(members):
        left, right = a + (q * rows + row) * rank, b + tl.cast(q, tl.int64) * rank * wide + column
        e = tl.load(left, held, 0) * tl.load(right, held, 0)
        for j in range(1, rank):
            e = e + tl.load(left + j, held, 0) * tl.load(right + j * wide, held, 0)
        total = total + e * scale * tl.load(coefficients + q)
    tl.store(out + at, total, held)


def low_rank(out: torch.Tensor, factors: Factors, coefficients: Sequence[float], start: int = 0) -> None:
    """As `torch_ops.low_rank`."""
    if len(factors.a_K) != len(coefficients):
        raise ValueError(f"{len(factors.a_K)} directions and {len(coefficients)} coefficients")
    if not len(out):
        return
    a_K, b_K, skip = factor_rows(factors, start, len(out), out.device)
    _, rows, rank = a_K.shape
    sent = torch.tensor(coefficients, dtype=torch.float32, device=out.device)
    with torch.cuda.device_of(out):
        low_rank_kernel[(triton.cdiv(len(out), TILE),)](
            out, a_K, b_K, sent, len(a_K), len(out), skip, rows, b_K.shape[2], rank, float(factors.scale), TILE,
            **OPTIONS,
        )  # fmt: skip


TRITON_SUMS = NoiseSums(full, low_rank)


@lru_cache(maxsize=8)
def _on_device(
    keys: tuple[Key, ...], coefficients: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeds of members and coefficients on the device: sent once, not once a parameter."""
    seeds = np.array([low | high << 32 for low, high in keys], np.uint64).view(np.int64)
    return torch.from_numpy(seeds).to(device), torch.tensor(coefficients, dtype=torch.float32, device=device)
