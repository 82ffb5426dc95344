"""`noise.torch_ops` runs wherever torch does: on the CPU it must have the bits of the other two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.noise import cpu, spec, torch_ops
from seedtune.noise.cpu import WHOLE, RowBlock, Step, Weights, low_rank_factors
from seedtune.noise.spec import Purpose

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FORMATS = {torch.float32: cpu.F32, torch.bfloat16: cpu.BF16, torch.float16: cpu.F16}
keys = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
parameters = st.integers(0, 2**32 - 1)
pytestmark = pytest.mark.parametrize("device", DEVICES)


def host(tensor):
    """The same memory as numba sees it."""
    flat = tensor.view(-1)
    return Weights.of(
        (flat if tensor.dtype == torch.float32 else flat.view(torch.uint16)).numpy(), FORMATS[tensor.dtype]
    )


@given(
    keys,
    parameters,
    st.sampled_from(list(Purpose)),
    st.integers(1, 200),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_words_are_those_of_the_specification(device, key, parameter, purpose, columns, firsts):
    found = torch_ops.words(key, parameter, purpose, torch.tensor(firsts, device=device), columns)
    for row, first in zip(found.cpu().numpy(), firsts, strict=True):
        assert np.array_equal(row, spec.words(key, parameter, purpose, first, first + columns))


ROW_BLOCKS = [
    (WHOLE, 0, 5003),
    (WHOLE, 2**35 + 3, 999),
    (RowBlock(30, 77, 11), 60, 30 * 41),
    (RowBlock(8, 64, 2**33), 0, 800),
    (RowBlock(1000, 4000, 77), 1300, 613),  # a part of one row
]


@pytest.mark.parametrize(("row_block", "start", "size"), ROW_BLOCKS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_perturb_and_digest(device, row_block, start, size, dtype):
    torch.manual_seed(0)
    source = torch.randn(size).to(dtype)
    expected, out = torch.empty(size, dtype=dtype), torch.empty(size, dtype=dtype, device=device)
    for scale in (0.0, -0.03):
        cpu.perturb(host(expected), host(source), scale, (3, 9), 77, start, row_block)
        torch_ops.perturb(out, source, scale, (3, 9), 77, start, row_block)
        assert torch.equal(out.cpu(), expected)
    assert torch_ops.digest(out, 77, start, row_block) == cpu.digest(host(expected), 77, start, row_block)


STEPS = {
    "sgd": (Step(0.3), 0),
    "momentum": (Step(0.3, 0.01, 0.9), 1),
    "adam": (Step(0.3, 0.01, 0.9, 0.999, 1e-8, 0.271, 0.003), 2),
}


@pytest.mark.parametrize(("row_block", "start", "size"), ROW_BLOCKS)
@pytest.mark.parametrize("rule", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low_rank", [False, True])
def test_update(device, row_block, start, size, rule, dtype, low_rank):
    torch.manual_seed(1)
    start = min(start, 2**20 + 3) if low_rank else start  # a matrix has so many rows
    step, moments = STEPS[rule]
    members, coefficients = [(1, 2), (3, 4), (5, 6)], np.array([0.4, -1.3, 0.07], np.float32)
    wide = row_block.columns if row_block != WHOLE else 31
    rows = -(-(start + size) // wide)
    factors = low_rank_factors(members, 77, (rows, wide), 3) if low_rank else None
    given = torch.randn(size).to(dtype)
    anchor = torch.randn(size) if rule == "momentum" else None
    rounding = (8, 9) if dtype == torch.bfloat16 else None
    ours, theirs = given.clone(), given.clone().to(device)
    m, v = torch.rand(size if moments else 0), torch.rand(size if moments > 1 else 0)
    m2, v2 = m.clone().to(device), v.clone().to(device)
    held = cpu.NO_WEIGHTS if anchor is None else host(anchor)
    a = cpu.update(
        host(ours), members, coefficients, 77, step, m.numpy(), v.numpy(), held, start, factors, rounding, row_block
    )
    b = torch_ops.update(theirs, members, coefficients, 77, step, m2, v2, anchor, start, factors, rounding, row_block)
    assert torch.equal(theirs.cpu(), ours)
    assert torch.equal(m2.cpu(), m)
    assert torch.equal(v2.cpu(), v)
    assert a == pytest.approx(b, rel=1e-6)
    assert not torch.equal(ours, given)


def test_ranges_hold_whole_rows_or_a_part_of_one(device, monkeypatch):
    monkeypatch.setattr(torch_ops, "SPAN", 100)
    assert torch_ops.ranges([250, 90], [WHOLE, RowBlock(30, 60, 0)]) == [
        (0, 0, 100),
        (0, 100, 200),
        (0, 200, 250),
        (1, 0, 90),
    ]
    assert torch_ops.ranges([240, 0], [RowBlock(120, 240, 0), RowBlock(0, 9, 0)]) == [
        (0, 0, 100), (0, 100, 120), (0, 120, 220), (0, 220, 240)
    ]  # fmt: skip
    assert torch_ops.ranges([250], [RowBlock(250, 750, 500)]) == [(0, 0, 100), (0, 100, 200), (0, 200, 250)]
