"""The Triton kernel without a GPU: its bits in Triton's interpreter (TRITON_INTERPRET=1, as `make test-vllm` sets it),
and what it compiles to.
"""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch

from seedtune.noise import gpu
from seedtune.noise.cpu import WHOLE, Cut, Step

pytest.importorskip("triton")

from triton.runtime.interpreter import InterpretedFunction

from seedtune.noise import fused

interpreted = pytest.mark.skipif(
    not isinstance(fused.accumulate_kernel, InterpretedFunction), reason="TRITON_INTERPRET is not 1"
)
CUTS = [(WHOLE, 2**33 - 5, 2999), (Cut(600, 1800, 77), 600, 3000), (Cut(5, 9, 2**32), 0, 40)]


@interpreted
def test_the_kernel_agrees_with_torch():
    assert gpu.agrees(fused.accumulate, torch.device("cpu"))


def test_other_bits_are_noticed():
    def nearly(out, *args):
        gpu.accumulate(out, *args)
        out[-1:].mul_(1.01)

    assert gpu.agrees(gpu.accumulate, torch.device("cpu"))
    assert not gpu.agrees(nearly, torch.device("cpu"))


@interpreted
@pytest.mark.parametrize(("cut", "start", "size"), CUTS)
def test_members_and_updates_by_the_kernel(cut, start, size, monkeypatch):
    source = torch.linspace(-1, 1, size)
    found = []
    for which in (gpu.accumulate, fused.accumulate):
        monkeypatch.setattr(gpu, "best", lambda device, which=which: which)
        member, weights = torch.empty(size, dtype=torch.bfloat16), source.to(torch.bfloat16)
        gpu.perturb(member, source, 0.01, (5, 6), 2**31 + 7, start, cut)
        none = torch.empty(0)
        keys, coefficients = [(1, 2), (3, 4), (5, 6)], np.array([0.4, -1.3, 0.07], np.float32)
        rounding = {"start": start, "rounding": (8, 9), "cut": cut}
        moved = gpu.update(weights, keys, coefficients, 77, Step(0.3), none, none, **rounding)
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
from seedtune.noise import fused

names = fused.accumulate_kernel.arg_names
types = f"*{sys.argv[2]} *fp32 *i64 *fp32 *fp32 i32 i32 i64 i32 i32 i32 constexpr constexpr".split()
aligned = {(n,): [["tt.divisibility", 16]] for n in (0, 1, 2, 3, 4, 7, 8, 9)}
source = ASTSource(
    fused.accumulate_kernel, dict(zip(names, types, strict=True)), {"from_source": True, "blocks": 256}, aligned
)
print(compile(source, GPUTarget("cuda", int(sys.argv[1]), 32), fused.OPTIONS).asm["ptx"])
"""


@pytest.mark.parametrize(("architecture", "dtype"), [*product([80, 90], ["bf16", "fp32"])])
def test_it_compiles_to_separate_roundings_and_wide_loads(architecture, dtype, monkeypatch):
    """For GPUs that are not here; a product and a sum in one rounding (`fma`) would be other bits."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    command = [sys.executable, "-c", COMPILE, str(architecture), dtype]
    ptx = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"\bmul\.rn\.f32", ptx)
    assert re.search(r"\badd\.rn\.f32", ptx)
    assert not re.search(r"\bfma\.", ptx)
    assert "ld.global.v4" in ptx
    assert "st.global.v4" in ptx
