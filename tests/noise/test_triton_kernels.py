"""The Triton kernels without a GPU: their bits in Triton's interpreter (TRITON_INTERPRET=1, as `make test-vllm` sets
it), and what they compile to.
"""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch

from seedtune.noise import torch_ops
from seedtune.noise.cpu import WHOLE, RowBlock, Step, low_rank_factors
from seedtune.noise.torch_ops import NoiseSums, Terms

pytest.importorskip("triton")

from triton.runtime.interpreter import InterpretedFunction

from seedtune.noise import triton_kernels

interpreted = pytest.mark.skipif(
    not isinstance(triton_kernels.full_kernel, InterpretedFunction), reason="TRITON_INTERPRET is not 1"
)
ROW_BLOCKS = [(WHOLE, 2**33 - 5, 2999), (RowBlock(600, 1800, 77), 600, 3000), (RowBlock(5, 9, 2**32), 0, 40)]


@interpreted
def test_the_kernels_agree_with_torch():
    assert torch_ops.matches_torch(triton_kernels.TRITON_SUMS, torch.device("cpu"))


def test_other_bits_are_noticed():
    def nearly(way):
        def wrong(out, *args):
            way(out, *args)
            out[-1:].mul_(1.01)

        return wrong

    cpu = torch.device("cpu")
    assert torch_ops.matches_torch(torch_ops.TORCH_SUMS, cpu)
    assert not torch_ops.matches_torch(NoiseSums(nearly(torch_ops.full), torch_ops.low_rank), cpu)
    assert not torch_ops.matches_torch(NoiseSums(torch_ops.full, nearly(torch_ops.low_rank)), cpu)


def test_why_a_device_cannot_run_them_is_kept_for_the_user(monkeypatch):
    def broken(*args):
        raise RuntimeError("no such instruction")

    torch_ops.noise_sums.cache_clear()
    monkeypatch.setattr(torch_ops, "matches_torch", broken)
    found = torch_ops.noise_sums(torch.device("cuda"))
    assert (found.full, found.low_rank) == (torch_ops.full, torch_ops.low_rank)
    assert found.fallback_reason == "RuntimeError: no such instruction"
    assert torch_ops.noise_sums(torch.device("cpu")).fallback_reason == ""
    torch_ops.noise_sums.cache_clear()


def test_bad_calls_end_before_the_device_is_asked():
    none = torch.empty(0)
    with pytest.raises(ValueError, match="2 keys and 1 coefficients"):
        triton_kernels.full(torch.zeros(8), None, Terms([(1, 2), (3, 4)], [0.5]), 7, 0, WHOLE)
    with pytest.raises(ValueError, match="1 directions and 2 coefficients"):
        triton_kernels.low_rank(torch.zeros(8), low_rank_factors([(1, 2)], 7, (4, 4), 1), [0.5, 0.5])
    triton_kernels.full(none, None, Terms([(1, 2)], [0.5]), 7, 0, WHOLE)


@interpreted
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(("row_block", "start", "size"), ROW_BLOCKS)
def test_members_and_updates_by_the_kernels(row_block, start, size, rank, monkeypatch):
    source = torch.linspace(-1, 1, size)
    members, coefficients = [(1, 2), (3, 4), (5, 6)], np.array([0.4, -1.3, 0.07], np.float32)
    wide, begin = (40, 7) if row_block == WHOLE else (row_block.columns, start)
    factors = rank and low_rank_factors(members, 77, (begin + size // wide + 2, wide), rank)
    found = []
    for which in (torch_ops.TORCH_SUMS, triton_kernels.TRITON_SUMS):
        monkeypatch.setattr(torch_ops, "noise_sums", lambda device, which=which: which)
        member, weights = torch.empty(size, dtype=torch.bfloat16), source.to(torch.bfloat16)
        torch_ops.perturb(member, source, 0.01, (5, 6), 2**31 + 7, start, row_block)
        none = torch.empty(0)
        how = {"start": begin if rank else start, "rounding": (8, 9), "row_block": row_block, "factors": factors}
        moved = torch_ops.update(weights, members, coefficients, 77, Step(0.3), none, none, **how)
        found.append((member, weights, moved))
    (a, b, c), (x, y, z) = found
    assert torch.equal(a, x)
    assert torch.equal(b, y)
    assert c == z > 0


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from seedtune.noise import triton_kernels

kernel, types, constants = eval(sys.argv[2])
kernel, types = getattr(triton_kernels, kernel), types.split()
sizes = ("first", "columns", "width", "size", "wide")  # multiples of 16, as most are
types = dict(zip(kernel.arg_names, types, strict=True))
aligned = {(n,): [["tt.divisibility", 16]] for n, (arg, t) in enumerate(types.items()) if t[0] == "*" or arg in sizes}
source = ASTSource(kernel, types, constants, aligned)
print(compile(source, GPUTarget("cuda", int(sys.argv[1]), 32), triton_kernels.OPTIONS).asm["ptx"])
"""
FULL = "*fp32 *i64 *fp32 *fp32 i32 i32 i64 i32 i32 i32 constexpr constexpr"
KERNELS = {
    "update": ("full_kernel", f"*fp32 {FULL}", {"from_source": False, "blocks": 256}),
    "float32": ("full_kernel", f"*fp32 {FULL}", {"from_source": True, "blocks": 256}),
    "bfloat16": ("full_kernel", f"*bf16 {FULL}", {"from_source": True, "blocks": 256}),
    "low-rank": ("low_rank_kernel", "*fp32 *fp32 *fp32 *fp32 i32 i32 i32 i32 i32 i32 fp32 constexpr", {"tile": 1024}),
}


@pytest.mark.parametrize(("architecture", "kernel"), [*product([80, 90], KERNELS)])
def test_they_compile_to_separate_roundings_and_wide_loads(architecture, kernel, monkeypatch):
    """For GPUs that are not here; a product and a sum in one rounding (`fma`) would be other bits."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    command = [sys.executable, "-c", COMPILE, str(architecture), repr(KERNELS[kernel])]
    ptx = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"\bmul\.rn\.f32", ptx)
    assert re.search(r"\badd\.rn\.f32", ptx)
    assert not re.search(r"\bfma\.", ptx)
    assert ("st.global.v2" if kernel == "bfloat16" else "st.global.v4") in ptx
    assert "bar.sync" not in ptx  # nothing goes through shared memory
