"""The copy of the base model: on disk, the same bits, and no memory of the model's size."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from seedtune.perturb.base_copy import BaseCopy
from seedtune.perturb.full_rank import FullRank
from seedtune.perturb.selection import select
from specs import perturbation

TENSORS = [torch.randn(7, 3), torch.randn(5).bfloat16(), torch.tensor(3.0), torch.empty(0), torch.randn(4, 6).half().T]


def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("writable", [True, False])
def test_what_comes_back_is_what_was_given(tmp_path, monkeypatch, writable):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / ("cache" if writable else "file")))
    given = [t.clone() for t in TENSORS]
    copies = BaseCopy(given)
    for tensor in given:
        tensor.zero_()
    for _ in range(2):
        for n in (3, 0, 4, 1, 2):
            assert torch.equal(copies[n], TENSORS[n])
            assert copies[n].dtype == TENSORS[n].dtype
    assert len(copies) == len(TENSORS)
    assert not [file for file in tmp_path.rglob("*") if file.name not in ("cache", "file")]  # it has no name


def test_a_disk_that_fills_up_keeps_the_rest_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
    copies = BaseCopy([])
    monkeypatch.setattr(BaseCopy, "_write", lambda self, tensor: None)
    copies = BaseCopy(TENSORS)
    assert all(torch.equal(copies[n], t) for n, t in enumerate(TENSORS))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads what Linux says of memory")
def test_it_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
    model = torch.ones(64 << 20, dtype=torch.uint8).view(torch.float32)
    before = kilobytes("RssAnon")
    copies = BaseCopy([model] * 4)
    assert kilobytes("RssAnon") - before < 64 << 10
    assert torch.equal(copies[3], model)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="reads what Linux says of memory")
def test_the_distance_of_an_embedding_takes_no_copies_of_it(tmp_path, monkeypatch):
    """Its base is read from disk (2 bytes per element); differences, in double precision, are computed in pieces."""
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
    layer = nn.Linear(1 << 12, 1 << 13, bias=False, dtype=torch.bfloat16)
    spec = perturbation(seed=1, sigma=0.01, scope="all", keep_base=True)
    center = FullRank(select(layer, spec).parameters, spec, torch.bfloat16)
    center.master.weights[0][::2] += 0.5
    gc.collect()
    before = kilobytes("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    assert center.distance() == pytest.approx((layer.weight.numel() / 2) ** 0.5 / 2, rel=1e-4)
    assert (kilobytes("VmHWM") - before) * 1024 < 4 * layer.weight.numel()
