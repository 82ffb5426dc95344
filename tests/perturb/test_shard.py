"""Shards of a model that is spread over devices: the noise, the updates and the digests of the whole."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from seedtune.engines.vllm.weight_map import locate_weights
from seedtune.errors import ModelError
from seedtune.es.population import Member, Population
from seedtune.es.update import UpdateRule
from seedtune.noise import cpu, torch_ops
from seedtune.noise.cpu import WHOLE
from seedtune.perturb import master
from seedtune.perturb.center import Center
from seedtune.perturb.full_rank import FullRank
from seedtune.perturb.master import CpuMaster, DeviceMaster
from seedtune.perturb.shard import Shard, draw_factors, join
from specs import perturbation

SHAPES = {"rows": (12, 40), "columns": (9, 96), "three": (4, 6, 10), "vector": (50,), "large": (600, 130)}
COEFFICIENTS = np.array([0.4, -0.3, 0.2, 0.1], np.float32)
HOW = {"seed": 5, "sigma": 0.05, "keep_base": True}


class LowRank(Center):
    """Only what an update needs."""

    def factors(self, keys):
        return draw_factors(keys, self.ids, self.shards, 2)

    def restore(self):
        pass


def weights():
    torch.manual_seed(1)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def spread(kind, tensors, shards_D, *how, **options):
    """A center a device."""
    parts = [{n: nn.Parameter(shard.slice_of(tensors[n]).clone(), False) for n, shard in s.items()} for s in shards_D]
    return [kind(part, *how, shards=[*s.values()], **options) for part, s in zip(parts, shards_D, strict=True)]


def total(digests):
    return sum(int(d, 16) for d in digests) % 2**64


@pytest.mark.parametrize("store", [CpuMaster, DeviceMaster, "pinned"])
@pytest.mark.parametrize("kind", [FullRank, LowRank])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {"master_dtype": "bfloat16"}),
        (torch.float16, {"rule": UpdateRule("adam", anchored=True, weight_decay=0.1)}),
    ],
    ids=["float32", "stochastic", "adam"],
)
def test_shards_hold_the_bits_of_the_whole(kind, dtype, options, store, monkeypatch):
    """Split along any dimension, at odd places, into parts of unlike size; a part that two devices hold counts once.
    The whole is numba's, in the host's memory; the parts are numba's or torch's.
    """
    monkeypatch.setattr(master, "free_memory", lambda device: 0.0 if store == "pinned" else math.inf)
    monkeypatch.setattr(torch_ops, "SPAN", 500)
    monkeypatch.setattr(cpu, "_SPAN", 1 << 15)  # so that a small parameter is done in several parts
    tensors = weights()
    if kind is LowRank:
        tensors = {n: t for n, t in tensors.items() if t.dim() < 3}
    dims = {"rows": 0, "columns": 1, "three": 2, "vector": 0, "large": 1}
    shards_D = [{}, {}]
    for name, tensor in tensors.items():
        size = tensor.shape[dims[name]]
        first = size // 3
        shards_D[0][name] = Shard(SHAPES[name], dims[name], 0, first)
        shards_D[1][name] = Shard(SHAPES[name], dims[name], first, size - first)
    shards_D[0]["vector"], shards_D[1]["vector"] = Shard(SHAPES["vector"]), Shard(SHAPES["vector"], counted=False)
    how = (perturbation(**HOW, **options), dtype)
    whole = kind({n: nn.Parameter(t.clone(), False) for n, t in tensors.items()}, *how)
    parts = spread(kind, tensors, shards_D, *how, master=DeviceMaster if store == "pinned" else store)
    assert all(center.master.remarks == ((master.MASTER_ON_HOST,) if store == "pinned" else ()) for center in parts)

    def joined(n, of):
        return join([s[n] for s in shards_D], [of(center) for center in parts])

    for t in (1, 2):
        if kind is FullRank:
            member = Member(t, 1, 1, -1)
            for center in (whole, *parts):
                center.set_members([member])
            for i, n in enumerate(whole.names):
                assert torch.equal(joined(n, lambda c, i=i: c.parameters[i].data), whole.parameters[i].data), n
        members = Population(4).ask(t)
        norms = [center.update(members, COEFFICIENTS, 0.3) for center in (whole, *parts)]
        assert np.hypot(*norms[1:]) == pytest.approx(norms[0], rel=1e-9)
        assert total(c.digest() for c in parts) == int(whole.digest(), 16)
        for n in whole.names:
            assert torch.equal(
                joined(n, lambda c, n=n: c.parameter(n, torch.float32)), whole.parameter(n, torch.float32)
            ), n
    assert np.hypot(*(c.distance() for c in parts)) == pytest.approx(whole.distance(), rel=1e-9)
    for name, bits in whole.state().items():
        n = name.partition("/")[2]
        assert torch.equal(joined(n, lambda c, name=name: c.state()[name]).view(-1), bits)
    state = whole.state()
    assert total(c.state_digest(c.shard_state(state)) for c in parts) == int(whole.digest(), 16)
    assert parts[0].num_perturbed == whole.num_perturbed


def test_a_whole_parameter_is_not_cut():
    assert Shard((4, 6)).row_block == Shard((4, 6), 1, 0, 6).row_block == WHOLE


class Served(nn.Module):
    """What device `rank` of `world` holds of a layer with two heads of keys and values of 4, as vLLM lays it out."""

    packed_modules_mapping: ClassVar = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self, own, rank, world):
        super().__init__()
        q, k, v = (own[f"a.{n}_proj.weight"].data for n in "qkv")
        copies = max(1, world // 2)
        rows, head = len(q) // world, len(k) * copies // world
        here = [q[rank * rows :][:rows], *(t[rank // copies * head :][:head] for t in (k, v))]
        o, e = own["a.o_proj.weight"].data, own["embed.weight"].data
        each = -(-len(e) // world)
        padded = torch.cat([e, torch.zeros(each * world - len(e), e.shape[1])])
        wide = o.shape[1] // world
        tensors = {
            "a.qkv_proj.weight": torch.cat(here), "a.o_proj.weight": o[:, rank * wide :][:, :wide].contiguous(),
            "embed.weight": padded[rank * each :][:each], "norm.weight": own["norm.weight"].data.clone(),
        }  # fmt: skip
        self.tensors = {name: nn.Parameter(t.clone(), False) for name, t in tensors.items()}

    def named_parameters(self):
        return self.tensors.items()


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_shards_are_found_in_what_a_device_holds(world):
    """Also where devices outnumber the heads of keys and values, and where the vocabulary does not divide."""
    torch.manual_seed(2)
    shapes = {
        "a.q_proj.weight": (32, 16), "a.k_proj.weight": (8, 16), "a.v_proj.weight": (8, 16),
        "a.o_proj.weight": (16, 32), "embed.weight": (13, 16), "norm.weight": (16,),
    }  # fmt: skip
    own = {name: nn.Parameter(torch.randn(shape), False) for name, shape in shapes.items()}
    found_D = [locate_weights(own, [*own], Served(own, rank, world), rank, world) for rank in range(world)]
    for name, shape in shapes.items():
        seen = torch.zeros(shape)
        for found in found_D:
            location = found[name]
            assert torch.equal(location.live, location.shard.slice_of(own[name].data))
            location.shard.slice_of(seen).add_(float(location.shard.counted))
        assert torch.equal(seen, torch.ones(shape)), name
    latent = Served(own, 0, world)
    latent.W_UV = torch.zeros(1)
    with pytest.raises(ModelError, match="computes with copies of 1 parameters"):
        locate_weights({"a.kv_b_proj.weight": own["norm.weight"]}, ["a.kv_b_proj.weight"], latent, 0, world)
    other = {n: nn.Parameter(p + 1, False) if "proj" in n and "o_" not in n else p for n, p in own.items()}
    with pytest.raises(ModelError, match=r"does not hold 3 of 6 .*q_proj"):
        locate_weights(other, [*other], Served(own, 0, world), 0, world)
