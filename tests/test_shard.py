"""Shards of a model that is spread over devices: the noise, the updates and the digests of the whole."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from seedtune.engines.vllm_places import places
from seedtune.errors import ModelError
from seedtune.es.population import Member, Population
from seedtune.es.update import UpdateRule
from seedtune.noise import gpu
from seedtune.noise.cpu import WHOLE
from seedtune.perturb import device
from seedtune.perturb.centre import Centre
from seedtune.perturb.device import Device
from seedtune.perturb.full import FullRank
from seedtune.perturb.host import Host
from seedtune.perturb.shard import Shard, draw_factors, join

SHAPES = {"rows": (12, 40), "columns": (9, 96), "three": (4, 6, 10), "vector": (50,), "large": (3000, 130)}
COEFFICIENTS = np.array([0.4, -0.3, 0.2, 0.1], np.float32)
HOW = {"seed": 5, "sigma": 0.05, "keep_base": True}


class LowRank(Centre):
    """Only what an update needs."""

    def factors(self, keys):
        return draw_factors(keys, self.ids, self.shards, 2)

    def restore(self):
        pass


def weights():
    torch.manual_seed(1)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def spread(kind, tensors, shards_D, **options):
    """A centre a device."""
    parts = [{n: nn.Parameter(shard.of(tensors[n]).clone(), False) for n, shard in s.items()} for s in shards_D]
    return [kind(part, shards=[*s.values()], **HOW, **options) for part, s in zip(parts, shards_D, strict=True)]


def total(digests):
    return sum(int(d, 16) for d in digests) % 2**64


@pytest.mark.parametrize("store", [Host, Device, "pinned"])
@pytest.mark.parametrize("kind", [FullRank, LowRank])
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float32},
        {"dtype": torch.bfloat16, "master": torch.bfloat16},
        {"dtype": torch.float16, "rule": UpdateRule("adam", anchored=True, weight_decay=0.1)},
    ],
    ids=["float32", "stochastic", "adam"],
)
def test_shards_hold_the_bits_of_the_whole(kind, options, store, monkeypatch):
    """Cut along any dimension, at odd places, into parts of unlike size; a part that two devices hold counts once.
    The whole is numba's, in the host's memory; the parts are numba's or torch's.
    """
    monkeypatch.setattr(device, "room", lambda device: 0.0 if store == "pinned" else math.inf)
    monkeypatch.setattr(gpu, "SPAN", 500)
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
    shards_D[0]["vector"], shards_D[1]["vector"] = Shard(SHAPES["vector"]), Shard(SHAPES["vector"], counts=False)
    whole = kind({n: nn.Parameter(t.clone(), False) for n, t in tensors.items()}, **HOW, **options)
    parts = spread(kind, tensors, shards_D, **options, store=Device if store == "pinned" else store)
    assert all(centre.store.remarks == ((device.NO_ROOM,) if store == "pinned" else ()) for centre in parts)

    def joined(n, of):
        return join([s[n] for s in shards_D], [of(centre) for centre in parts])

    for t in (1, 2):
        if kind is FullRank:
            member = Member(t, 1, 1, -1)
            for centre in (whole, *parts):
                centre.become([member])
            for i, n in enumerate(whole.names):
                assert torch.equal(joined(n, lambda c, i=i: c.parameters[i].data), whole.parameters[i].data), n
        members = Population(4).ask(t)
        norms = [centre.update(members, COEFFICIENTS, 0.3) for centre in (whole, *parts)]
        assert np.hypot(*norms[1:]) == pytest.approx(norms[0], rel=1e-9)
        assert total(c.digest() for c in parts) == int(whole.digest(), 16)
        for n in whole.names:
            assert torch.equal(joined(n, lambda c, n=n: c.centre(n, torch.float32)), whole.centre(n, torch.float32)), n
    assert np.hypot(*(c.distance() for c in parts)) == pytest.approx(whole.distance(), rel=1e-9)
    for name, bits in whole.state().items():
        n = name.partition("/")[2]
        assert torch.equal(joined(n, lambda c, name=name: c.state()[name]).view(-1), bits)
    state = whole.state()
    assert total(c.state_digest(c.part_of(state)) for c in parts) == int(whole.digest(), 16)
    assert parts[0].moved == whole.moved


def test_a_whole_parameter_is_not_cut():
    assert Shard((4, 6)).cut == Shard((4, 6), 1, 0, 6).cut == WHOLE


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
    found_D = [places(own, [*own], Served(own, rank, world), rank, world) for rank in range(world)]
    for name, shape in shapes.items():
        seen = torch.zeros(shape)
        for found in found_D:
            place = found[name]
            assert torch.equal(place.live, place.shard.of(own[name].data))
            place.shard.of(seen).add_(float(place.shard.counts))
        assert torch.equal(seen, torch.ones(shape)), name
    latent = Served(own, 0, world)
    latent.W_UV = torch.zeros(1)
    with pytest.raises(ModelError, match="copies that it made of 1 parameters"):
        places({"a.kv_b_proj.weight": own["norm.weight"]}, ["a.kv_b_proj.weight"], latent, 0, world)
    other = {n: nn.Parameter(p + 1, False) if "proj" in n and "o_" not in n else p for n, p in own.items()}
    with pytest.raises(ModelError, match=r"does not hold 3 of 6 .*q_proj"):
        places(other, [*other], Served(own, 0, world), 0, world)
