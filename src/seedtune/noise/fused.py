"""The noise stream in Triton: sums of members' noise in one pass over the weights, with the bits of `spec`.

What `gpu` does in torch's own operations takes some 240 bytes of memory traffic an element and member; here words and
normals stay in registers. A multiply and an add stay two roundings: `enable_fp_fusion=False`, which a test looks for in
the compiled code. Tested in Triton's interpreter and compiled, without a GPU; `gpu` compares bits before it is used on
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl

from .cpu import WHOLE, Cut, Factors
from .gpu import Sums, rows_of, table_on
from .spec import Key

#: What a program works on: elements, of low-rank noise; at most so many blocks of eight words, two a thread.
TILE, BLOCKS = 1024, 256
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def words(seed, block, parameter, purpose):  # type: ignore[no-untyped-def]
    """The 16-bit words of blocks [B] of a parameter: [8 B]. As `spec.words`."""
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(low) + parameter.to(tl.uint32), tl.zeros_like(low) + purpose
    c0, c1, c2, c3 = tl.philox(seed, low, high, c2, c3)
    first = tl.join(tl.join(c0 & 0xFFFF, c0 >> 16), tl.join(c1 & 0xFFFF, c1 >> 16))  # [B, half, output]
    last = tl.join(tl.join(c2 & 0xFFFF, c2 >> 16), tl.join(c3 & 0xFFFF, c3 >> 16))
    return tl.ravel(tl.permute(tl.join(first, last), (0, 3, 2, 1)))  # [B, first or last, output, half]


@triton.jit
def rounded_to_bfloat16(values):  # type: ignore[no-untyped-def]
    """As `spec.round_to_bfloat16`; Triton's own rounding differs between a device and the interpreter."""
    bits = values.to(tl.uint32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit(do_not_specialize=["members", "parameter", "tiles"])
def full_kernel(  # type: ignore[no-untyped-def]
    out, source, seeds, coefficients, table, members, parameter, first, columns, width, tiles,
    from_source: tl.constexpr, blocks: tl.constexpr,
):  # fmt: skip
    """One tile of one row: out = round(source + sum of coefficient * noise), in float32, in the order of members."""
    program = tl.program_id(0).to(tl.int64)
    row, tile = program // tiles, program % tiles
    start = first + row * width
    block = (start >> 3) + tile * blocks + tl.arange(0, blocks)
    column = (((start >> 3) + tile * blocks) << 3) - start + tl.arange(0, 8 * blocks)
    held, at = (column >= 0) & (column < columns), row * columns + column
    total = tl.zeros((8 * blocks,), tl.float32)
    if from_source:
        total = tl.load(source + at, held, 0).to(tl.float32)
    for q in range(members):
        word = words(tl.load(seeds + q), block, parameter, 0)
        total = total + tl.load(table + word) * tl.load(coefficients + q)
    if out.dtype.element_ty == tl.bfloat16:
        total = rounded_to_bfloat16(total)
    tl.store(out + at, total.to(out.dtype.element_ty), held)


def full(
    out: torch.Tensor,
    source: torch.Tensor | None,
    keys: Sequence[Key],
    coefficients: Sequence[float],
    parameter: int,
    start: int = 0,
    cut: Cut = WHOLE,
) -> None:
    """As `gpu.full`. `out` and `source` are flat and contiguous, on one device; `out` holds whole rows of the cut
    from `start` on, or a part of one.
    """
    row, column = divmod(start, cut.columns)
    first = cut.first + row * cut.width + column
    columns = len(out) if column + len(out) <= cut.columns else cut.columns
    blocks = min(BLOCKS, max(16, triton.next_power_of_2(columns // 8 + 2)))
    tiles = triton.cdiv(columns + 7, 8 * blocks)
    sent = (*_there(tuple(keys), tuple(coefficients), out.device), table_on(out.device))
    signed = parameter - (parameter >> 31 << 32)  # so that it is always 32 bits wide
    with torch.cuda.device_of(out):
        full_kernel[(len(out) // columns * tiles,)](
            out, out if source is None else source, *sent, len(keys), signed, first, columns, cut.width, tiles,
            source is not None, blocks, **OPTIONS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["members", "skip"])
def low_rank_kernel(  # type: ignore[no-untyped-def]
    out, a, b, coefficients, members, size, skip, rows, wide, rank, scale, tile: tl.constexpr
):
    """out = sum of coefficient * A B^T * scale, in the order of members and ranks; a_K [K, rows, rank], b_K [K, rank,
    wide]. The first element is number `skip` of the first row.
    """
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    held, row, column = at < size, (at + skip) // wide, (at + skip) % wide
    total = tl.zeros((tile,), tl.float32)
    for q in range(members):
        left, right = a + (q * rows + row) * rank, b + q * rank * wide + column
        e = tl.load(left, held, 0) * tl.load(right, held, 0)
        for j in range(1, rank):
            e = e + tl.load(left + j, held, 0) * tl.load(right + j * wide, held, 0)
        total = total + e * scale * tl.load(coefficients + q)
    tl.store(out + at, total, held)


def low_rank(out: torch.Tensor, factors: Factors, coefficients: Sequence[float], start: int = 0) -> None:
    """As `gpu.low_rank`."""
    a_K, b_K, skip = rows_of(factors, start, len(out), out.device)
    _, rows, rank = a_K.shape
    sent = torch.tensor(coefficients, dtype=torch.float32, device=out.device)
    with torch.cuda.device_of(out):
        low_rank_kernel[(triton.cdiv(len(out), TILE),)](
            out, a_K, b_K, sent, len(a_K), len(out), skip, rows, b_K.shape[2], rank, float(factors.scale), TILE,
            **OPTIONS,
        )  # fmt: skip


Fused = Sums(full, low_rank)


@lru_cache(maxsize=8)
def _there(
    keys: tuple[Key, ...], coefficients: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeds of members and coefficients on the device: sent once, not once a parameter."""
    seeds = np.array([low | high << 32 for low, high in keys], np.uint64).view(np.int64)
    return torch.from_numpy(seeds).to(device), torch.tensor(coefficients, dtype=torch.float32, device=device)
