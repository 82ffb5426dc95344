"""The copy of the base model: on disk, the same bits, and no memory of the model's size."""

from __future__ import annotations

import os

import pytest
import torch

from seedtune.perturb.base_copy import BaseCopy

TENSORS = [torch.randn(7, 3), torch.randn(5).bfloat16(), torch.tensor(3.0), torch.empty(0), torch.randn(4, 6).half().T]


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

    def resident():
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("RssAnon:")) / 1024

    model = torch.ones(64 << 20, dtype=torch.uint8).view(torch.float32)
    before = resident()
    copies = BaseCopy([model] * 4)
    assert resident() - before < 64
    assert torch.equal(copies[3], model)
