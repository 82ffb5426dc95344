"""The noise stream on a GPU, in torch's own operations. They run on a CPU as well, where tests hold the bits to `spec`.
Sums of noise are left to the kernel of `triton_kernels` where it runs and has the same bits.

Integers are 64 bits wide and wrap, and what is 32 bits wide is cut out of them. A multiply and an add are two
operations, so no compiler makes one rounding of them; no division is by a Python number, which CUDA would turn into a
product.

`out`, `source`, `weights`... are flat, contiguous tensors of float32, bfloat16 or float16 on one device, that begin at
`start` of a row block and hold a part of one row of it, or whole rows: see `ranges`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from . import spec
from .cpu import WHOLE, Factors, Range, RowBlock, Step, low_rank_factors
from .spec import Key, Purpose

_MASK = 2**32 - 1
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
#: Elements that are worked on at once: the words of each take some 40 bytes for a while.
SPAN = 1 << 24


def ranges(sizes: Sequence[int], row_blocks: Sequence[RowBlock]) -> list[Range]:
    """Split arrays of these sizes into (array, start, stop) of at most `SPAN` elements: whole rows, or parts of one."""
    found = []
    for n, (size, row_block) in enumerate(zip(sizes, row_blocks, strict=True)):
        row = min(row_block.columns, size) or 1
        rows = max(1, SPAN // row) * row
        for i in range(0, size, rows):
            end = min(i + rows, size)
            found += [(n, j, min(j + SPAN, end)) for j in range(i, end, SPAN)]
    return found


def words(key: Key, parameter: int, purpose: Purpose, first_R: torch.Tensor, columns: int) -> torch.Tensor:
    """The 16-bit words of runs of `columns` elements that begin at the indices `first_R`: [R, columns], int64."""
    block = (first_R >> 3)[:, None] + torch.arange((columns + 14) // 8, device=first_R.device)
    c0, c1 = block & _MASK, block >> 32
    c2, c3 = torch.full_like(block, parameter), torch.full_like(block, int(purpose))
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK
        c2, c3 = ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    halves = torch.stack([half for c in (c0, c1, c2, c3) for half in (c & 0xFFFF, c >> 16)], dim=-1).flatten(1)
    skip = (first_R & 7)[:, None]
    if len(halves) == 1:
        at = int(skip)
        return halves[:, at : at + columns]
    return halves.gather(1, skip + torch.arange(columns, device=first_R.device))


def perturb(
    out: torch.Tensor,
    source: torch.Tensor,
    scale: float,
    key: Key,
    parameter: int,
    start: int = 0,
    row_block: RowBlock = WHOLE,
) -> None:
    """out = round(source + float32(scale) * noise), as `cpu.perturb`; `source` may be on the host, in pinned memory."""
    source = source.to(out.device, non_blocking=True)
    if scale == 0:
        out.copy_(source)
    else:
        noise_sums(out.device).full(out, source, Terms([key], [scale]), parameter, start, row_block)


def update(
    weights: torch.Tensor,
    keys: Sequence[Key],
    coefficients: NDArray[np.float32],
    parameter: int,
    step: Step,
    momentum: torch.Tensor,
    second_moment: torch.Tensor,
    anchor: torch.Tensor | None = None,
    start: int = 0,
    factors: Factors | None = None,
    rounding: Key | None = None,
    row_block: RowBlock = WHOLE,
    device: torch.device | None = None,
) -> float:
    """As `cpu.update`, on `device` (default: where the weights are; they may be in pinned memory of the host)."""
    device = device or weights.device
    before = weights.to(device).float()
    g = torch.empty_like(before)
    if factors is None:
        noise_sums(device).full(g, None, Terms(keys, coefficients.tolist()), parameter, start, row_block)
    else:
        noise_sums(device).low_rank(g, factors, coefficients.tolist(), start)
    m, v = momentum.to(device), second_moment.to(device)
    after = _step(before, g, m, v, None if anchor is None else anchor.to(device).float(), step)
    momentum.copy_(m)
    second_moment.copy_(v)
    moved = float((after - before).double().square().sum())
    if rounding is not None:
        dither = words(
            rounding, parameter, Purpose.ROUNDING, *_row_starts(len(weights), start, row_block, device)
        ).flatten()
        rounded = ((after.view(torch.int32).long() & _MASK) + dither & _MASK) >> 16
        after = rounded.to(torch.int16).view(torch.bfloat16)
    weights.copy_(after)
    return moved


def digest(weights: torch.Tensor, parameter: int, start: int = 0, row_block: RowBlock = WHOLE) -> int:
    """As `spec.digest`."""
    first_R, columns = _row_starts(len(weights), start, row_block, weights.device)
    index = (first_R[:, None] + torch.arange(columns, device=weights.device)).flatten()
    wide = weights.dtype == torch.float32
    bits = weights.view(torch.int32).long() & _MASK if wide else weights.view(torch.int16).long() & 0xFFFF
    x = (bits | _signed(parameter << 32)) + (index + 1) * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return int((x ^ _shift(x, 31)).sum()) % 2**64


# --- sums of noise ----------------------------------------------------------------------------------------------------


class Terms(NamedTuple):
    """Members' keys, and what multiplies the noise of each."""

    keys: Sequence[Key]
    coefficients: Sequence[float]


class NoiseSums(NamedTuple):
    """Who adds up members' noise: see `full` and `low_rank`; and why it is not the fastest that there is."""

    full: Callable[..., None]
    low_rank: Callable[..., None]
    fallback_reason: str = ""


def full(
    out: torch.Tensor, source: torch.Tensor | None, terms: Terms, parameter: int, start: int, row_block: RowBlock
) -> None:
    """out = round(source + sum of float32(c) * noise), in the order of the terms; no source: zeros."""
    total = torch.zeros(len(out), device=out.device) if source is None else source.float()
    first_R, columns = _row_starts(len(out), start, row_block, out.device)
    for key, c in zip(*terms, strict=True):
        index = words(key, parameter, Purpose.FULL, first_R, columns).flatten()
        noise = table_on(out.device).index_select(0, index)
        total = noise.mul_(float(np.float32(c))).add_(total)
    out.copy_(total)


def low_rank(out: torch.Tensor, factors: Factors, coefficients: Sequence[float], start: int = 0) -> None:
    """out = sum of float32(c) * `spec.low_rank`, in the order of the factors, of elements `start`... of the matrix."""
    a_K, b_K, skip = factor_rows(factors, start, len(out), out.device)
    total = torch.zeros_like(out)
    for a, b, c in zip(a_K, b_K, coefficients, strict=True):
        e = a[:, :1] * b[0]
        for j in range(1, a.shape[1]):
            e = e + a[:, j : j + 1] * b[j]
        flat = e.mul_(float(factors.scale)).flatten()[skip : skip + len(out)]
        total.add_(flat.mul_(float(np.float32(c))))
    out.copy_(total)


TORCH_SUMS = NoiseSums(full, low_rank)


def factor_rows(
    factors: Factors, start: int, size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The factors of the rows that a run of elements touches, on the device; and where in the first row it begins."""
    wide = factors.b_K.shape[2]
    first, last = start // wide, -(-(start + size) // wide)
    a = torch.from_numpy(np.ascontiguousarray(factors.a_K[:, first:last]))
    return a.to(device), torch.from_numpy(factors.b_K).to(device), start - first * wide


@cache
def noise_sums(device: torch.device) -> NoiseSums:
    """The kernels of `triton_kernels` where there is Triton and their bits are those from here; else these."""
    if device.type != "cuda":
        return TORCH_SUMS
    try:
        from .triton_kernels import TRITON_SUMS

        if matches_torch(TRITON_SUMS, device):
            return TRITON_SUMS
        return TORCH_SUMS._replace(fallback_reason="their bits are not those of the specification on this device")
    except Exception as e:  # Triton absent, or a device or driver that it cannot compile for
        return TORCH_SUMS._replace(fallback_reason=f"{type(e).__name__}: {e}".splitlines()[0])


# Runs: start, row block, number of elements; matrices: shape, start, rank; dtypes: of the source and of the result.
_RUNS = (
    *((0, WHOLE, 8192), (5, WHOLE, 5003), (2**35 + 3, WHOLE, 999)),
    *((0, RowBlock(512, 4096, 512), 8192), (60, RowBlock(30, 77, 11), 1230)),
)
_MATRICES = (((64, 128), 0, 1), ((70, 90), 401, 3))
_WAYS = (
    *((None, torch.float32), (torch.float32, torch.float32), (torch.float32, torch.bfloat16)),
    *((torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)),
)


def matches_torch(other: NoiseSums, device: torch.device) -> bool:
    """Whether these sums have the bits of the ones here: of runs and shards at multiples of 16, which are compiled
    otherwise, and elsewhere; also in place.
    """
    keys, coefficients, parameter = [(2**32 - 9, 3), (7, 2**32 - 1)], [-0.03, 1.7], 2**32 - 5
    terms = Terms(keys, coefficients)
    for (start, row_block, size), (given, made) in product(_RUNS, _WAYS):
        source = None if given is None else torch.linspace(-2, 2, size, device=device).to(given)
        a, b = (torch.full((size,), torch.nan, dtype=made, device=device) for _ in range(2))
        full(a, source, terms, parameter, start, row_block)
        other.full(b, source, terms, parameter, start, row_block)
        if not _same_bits(a, b):
            return False
        if source is not None and source.dtype == made:
            other.full(source, source, terms, parameter, start, row_block)
            if not _same_bits(a, source):
                return False
    for shape, start, rank in _MATRICES:
        factors = low_rank_factors(keys, 5, shape, rank)
        a, b = (torch.full((4992,), torch.nan, device=device) for _ in range(2))
        low_rank(a, factors, coefficients, start)
        other.low_rank(b, factors, coefficients, start)
        if not _same_bits(a, b):
            return False
    return True


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    whole = torch.int32 if a.itemsize == 4 else torch.int16
    return torch.equal(a.view(whole), b.view(whole))


# --- elements ---------------------------------------------------------------------------------------------------------


@cache
def table_on(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(spec.table().copy()).to(device)


def row_span(size: int, start: int, row_block: RowBlock) -> tuple[int, int, int]:
    """Of whole rows, or a part of one: the first index in the whole parameter, how many rows, how long they are."""
    row, column = divmod(start, row_block.columns)
    first = row_block.first + row * row_block.width + column
    return (
        (first, 1, size)
        if column + size <= row_block.columns
        else (first, size // row_block.columns, row_block.columns)
    )


def _row_starts(size: int, start: int, row_block: RowBlock, device: torch.device) -> tuple[torch.Tensor, int]:
    """The indices, in the whole parameter, of the first elements of the rows, and how long these are."""
    first, rows, columns = row_span(size, start, row_block)
    return first + row_block.width * torch.arange(rows, device=device), columns


def _step(
    w: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor, anchor: torch.Tensor | None, step: Step
) -> torch.Tensor:
    """`es.update.apply`; m and v are empty where the rule keeps no such state, and changed in place."""
    learning_rate, decay, beta1, beta2, epsilon, *corrections = (np.float32(x) for x in step)
    rest1, rest2 = float(np.float32(1) - beta1), float(np.float32(1) - beta2)
    if len(v):
        m.mul_(float(beta1)).add_(g * rest1)
        v.mul_(float(beta2)).add_((g * g) * rest2)
        first, second = (torch.full((), float(c), device=w.device) for c in corrections)
        root = (v / second).double().sqrt().float()  # correctly rounded, which torch's own is not on a CPU
        g = (m / first) / (root + float(epsilon))
    elif len(m):
        g = m.mul_(float(beta1)).add_(g)
    if decay:
        g = g - (w if anchor is None else w - anchor) * float(decay)
    return w + g * float(learning_rate)


def _shift(x: torch.Tensor, by: int) -> torch.Tensor:
    """To the right, zeros coming in."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(x: int) -> int:
    """The same 64 bits as torch counts them."""
    return x - 2**64 if x >= 2**63 else x
