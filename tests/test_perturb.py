"""Full-rank perturbation of live torch models: exact restoration, no lost update, ties, scopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from seedtune.errors import ConfigError, ModelError
from seedtune.es import update
from seedtune.es.population import Member, Population
from seedtune.es.update import UpdateRule
from seedtune.noise import cpu, spec
from seedtune.perturb.device import Device
from seedtune.perturb.full import FullRank
from seedtune.perturb.host import Host
from seedtune.perturb.lowrank import LowRank
from seedtune.perturb.scope import select, select_layers
from tiny import tiny_gpt2, tiny_llama


def full(model, *, dtype=torch.bfloat16, scope="all", sigma=0.01, seed=3, **options):
    return FullRank(select(model, scope), seed=seed, sigma=sigma, dtype=dtype, **options)


def any_rank(model, rank, *, dtype=torch.bfloat16, scope="all", **options):
    if rank is None:
        return full(model, dtype=dtype, scope=scope, **options)
    layers = select_layers(model, scope)
    return LowRank(layers.found, together=layers.together, rank=rank, seed=3, sigma=0.01, dtype=dtype, **options)


def bytes_of(model):
    return {name: p.detach().view(torch.uint8).clone() for name, p in model.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_member_is_the_rounded_sum_of_master_and_noise(dtype):
    model = tiny_llama()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    perturber = full(model, dtype=dtype)
    member = Member(iteration=2, index=5, pair=2, sign=-1)
    perturber.perturb(member)
    key = spec.member_key(3, 2, 2)
    for name, p in model.named_parameters():
        noise = spec.normals(key, spec.parameter_id(name), spec.Purpose.FULL, 0, p.numel()).reshape(p.shape)
        expected = torch.from_numpy(base[name].numpy() + np.float32(-0.01) * noise).to(dtype)
        assert p.dtype == dtype
        assert torch.equal(p, expected), name


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_after_1000_members_the_centre_has_not_changed(base, dtype):
    model = tiny_llama(layers=1).to(base)
    perturber = full(model, dtype=dtype)
    before, digest = bytes_of(model), perturber.digest()
    for t in range(250):
        for member in Population(4, antithetic=t % 2 == 1).ask(t):
            perturber.perturb(member)
    assert not same(before, bytes_of(model))
    perturber.restore()
    assert same(before, bytes_of(model))
    assert perturber.digest() == digest


def test_a_member_that_was_written_by_half_is_undone(monkeypatch):
    """Out of memory in the middle, say: what is there is neither the member nor the centre."""
    model = tiny_llama()
    perturber, member = full(model), Member(1, 0, 0, 1)
    before, write, parts = bytes_of(model), cpu.perturb, []

    def fails(*args):
        parts.append(args)
        if len(parts) == 5:
            raise MemoryError
        write(*args)

    monkeypatch.setattr(cpu, "perturb", fails)
    with pytest.raises(MemoryError):
        perturber.perturb(member)
    monkeypatch.undo()
    assert not same(bytes_of(model), before)
    perturber.restore()
    assert same(bytes_of(model), before)
    perturber.perturb(member)
    whole = bytes_of(model)
    parts.clear()
    monkeypatch.setattr(cpu, "perturb", fails)
    with pytest.raises(MemoryError):
        perturber.restore()
    monkeypatch.undo()
    perturber.perturb(member)
    assert same(bytes_of(model), whole)


def test_a_base_that_could_not_be_shown_is_not_left_there():
    model = tiny_llama()
    perturber = full(model, keep_base=True)
    perturber.update(Population(4, False).ask(1), np.array([0.5, -0.5, 0.2, 0.1], np.float32), 0.3)
    before, told = bytes_of(model), []

    def fails():
        told.append(bytes_of(model))
        if len(told) == 1:
            raise MemoryError

    perturber.watch(fails)
    with pytest.raises(MemoryError), perturber.as_base():
        pass
    assert not same(told[0], before)
    assert same(bytes_of(model), before)


def test_subtracting_the_noise_again_drifts_and_so_is_an_option_only():
    model = tiny_llama(layers=1).to(torch.bfloat16)
    perturber = full(model, restore="subtract", sigma=0.001)
    before = bytes_of(model)
    for member in Population(30).ask(0):
        perturber.perturb(member)
    perturber.restore()
    assert not same(before, bytes_of(model))
    drift = max(
        (p.float() - before[n].view(torch.bfloat16).float()).abs().max().item() for n, p in model.named_parameters()
    )
    assert drift < 0.05


def test_subtract_keeps_no_second_copy():
    model = tiny_llama()
    perturber = full(model, restore="subtract")
    pointers = {p.data_ptr() for p in model.parameters()}
    assert {w.bits().ctypes.data for w in perturber.store.centre} == pointers


def test_1000_tiny_updates_are_not_lost_in_bfloat16():
    """Each is far below half a unit in the last place of the live weights; together they are what they sum to."""
    model = tiny_llama(layers=1).to(torch.bfloat16)
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name).fill_(1.0)
    perturber = full(model, scope=name)
    members, c = [Member(0, 0, 0, 1)], np.array([1.0], np.float32)
    for _ in range(1000):
        perturber.update(members, c, rate=2e-5)
    noise = spec.normals(spec.member_key(3, 0, 0), spec.parameter_id(name), spec.Purpose.FULL, 0, 2048)
    moved = model.get_parameter(name).detach().float().numpy().ravel() - 1
    large = np.abs(noise) > 1
    assert np.spacing(np.float32(1)) < 2e-5 < 2.0**-9  # one update: visible in float32, below half a bfloat16 unit
    assert moved[large] == pytest.approx(0.02 * noise[large], abs=2.0**-8 + 1e-4)  # half a unit, and float32 sums
    assert np.all(moved[large] != 0)


def test_an_update_moves_the_live_model_and_the_digest_and_reports_its_norm():
    model = tiny_llama()
    perturber = full(model, dtype=torch.float32)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    digest = perturber.digest()
    members = Population(4).ask(0)
    perturber.perturb(members[1])
    norm = perturber.update(members, np.array([1, -1, 0.5, 0], np.float32), rate=0.1)
    moved = torch.cat([(p - before[n]).ravel() for n, p in model.named_parameters()])
    assert norm == pytest.approx(moved.double().norm().item(), rel=1e-5)
    assert norm == pytest.approx(0.1 * 1.5 * perturber.moved**0.5, rel=0.05)
    assert perturber.digest() != digest


RULES = [
    UpdateRule(), UpdateRule("momentum", weight_decay=0.1), UpdateRule("adam", weight_decay=0.1, anchored=True),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.optimizer)
@pytest.mark.parametrize("antithetic", [False, True], ids=["plain", "antithetic"])
@pytest.mark.parametrize("rank", [None, 1, 3], ids=["full", "rank1", "rank3"])
@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_replicas_agree_whatever_their_dtype_and_threads(rule, antithetic, rank, master, monkeypatch):
    digests = set()
    for dtype, threads in [(torch.float32, 1), (torch.bfloat16, 2), (torch.float16, 3)]:
        cpu.set_threads(threads)
        centre = any_rank(tiny_llama(), rank, dtype=dtype, rule=rule, master=master)
        monkeypatch.setattr(cpu, "_SPAN", 2**18 // threads**5)  # unlike ranges, too
        centre.store.ranges = cpu.ranges(len(w) for w in centre.store.centre)
        for t in range(3):
            members = Population(4, antithetic=antithetic).ask(t)
            centre.update(members, np.array([1, -1, 0.5, 0], np.float32), rate=0.01)
        digests.add(centre.digest())
    cpu.set_threads(2)
    assert len(digests) == 1


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.optimizer)
def test_a_bfloat16_master_is_the_references_step_stochastically_rounded(rule, rank):
    name = "model.layers.0.mlp.up_proj.weight"
    centre = any_rank(tiny_llama(), rank, scope=name, rule=rule, master=torch.bfloat16)
    theta = centre.centre(name, torch.float32).numpy().ravel()
    base, number = theta.copy(), spec.parameter_id(name)
    assert np.array_equal(theta, tiny_llama().get_parameter(name).detach().bfloat16().float().numpy().ravel())
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    c = np.array([0.3, -0.2], np.float32)
    for t in (1, 2):
        centre.update([Member(t, 0, 0, 1), Member(t, 1, 1, 1)], c, rate=0.01)
        keys = [spec.member_key(3, t, pair) for pair in (0, 1)]
        if rank is None:
            noise = [spec.normals(key, number, spec.Purpose.FULL, 0, theta.size) for key in keys]
        else:
            noise = [spec.low_rank(key, number, (64, 32), rank).ravel() for key in keys]
        anchor = base if rule.anchored else None
        theta, m, v = update.apply(theta, update.weighted_noise(noise, c), rule, 0.01, t, m, v, anchor)
        bits = spec.round_stochastically(theta, keys[0], number)
        theta = (bits.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(centre.centre(name, torch.float32).numpy().ravel(), theta)


def test_a_bfloat16_master_loses_no_update_on_average():
    """Steps of a fortieth of what bfloat16 can hold: rounding to nearest would lose them all."""
    model, name = tiny_llama(), "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name).fill_(1.0)
    rule = UpdateRule(weight_decay=1.0)
    centre = full(model, scope=name, master=torch.bfloat16, dtype=torch.float32, rule=rule, keep_base=True)
    for t in range(200):
        centre.update([Member(t, 0, 0, 1)], np.array([0.0], np.float32), rate=1e-4)
    theta = centre.centre(name, torch.float32).numpy()
    assert theta.mean() == pytest.approx((1 - 1e-4) ** 200, abs=1e-3)
    assert centre.store.centre[0].bits().dtype == np.uint16
    assert centre.distance() == pytest.approx(float(np.linalg.norm(theta - 1)), rel=1e-5)


def test_anchored_decay_pulls_back_to_the_base():
    free, held = full(tiny_llama()), full(tiny_llama(), rule=UpdateRule(weight_decay=0.5, anchored=True))
    base = full(tiny_llama())
    for t in range(20):
        members = Population(2).ask(t)
        for perturber in (free, held):
            perturber.update(members, np.array([1, -1], np.float32), rate=0.1)

    def distance(p):
        return sum(float(torch.sum((p.centre(n, torch.float32) - base.centre(n, torch.float32)) ** 2)) for n in p.names)

    assert 0 < distance(held) < 0.7 * distance(free)


def test_shared_noise_repeats_across_layers():
    model = tiny_llama()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    full(model, dtype=torch.float32, noise="shared").perturb(Member(0, 0, 0, 1))
    a, b = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    deltas = [model.get_parameter(n) - before[n] for n in (a, b)]
    assert torch.allclose(deltas[0], deltas[1], atol=1e-6)


def test_tied_weights_move_once():
    model = tiny_llama(tied=True)
    parameters = select(model, "all")
    assert "lm_head.weight" not in parameters
    perturber = full(model)
    perturber.perturb(Member(0, 0, 0, 1))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert perturber.moved == sum(p.numel() for p in model.parameters())


def test_scopes():
    model = tiny_llama()
    everything = set(select(model, "all"))
    linear = set(select(model, "linear"))
    assert linear < everything
    assert len(linear) == 2 * 7
    assert not any("norm" in n or "embed" in n or "lm_head" in n for n in linear)
    assert set(select(model, r"layers\.1\..*norm")) == {
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
    }
    assert all(n.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) for n in select(tiny_gpt2(), "linear"))


@pytest.mark.parametrize("scope", ["liner", "layers\\.9\\."])
def test_a_scope_that_matches_nothing_shows_some_names(scope):
    with pytest.raises(ConfigError, match=r"matches none of the model's[\s\S]*embed_tokens"):
        select(tiny_llama(), scope)


def test_a_scope_that_is_no_regular_expression():
    with pytest.raises(ConfigError, match="regular expression"):
        select(tiny_llama(), "layers[")


def test_quantised_weights_are_refused():
    model = torch.nn.Sequential()
    model.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="quantised"):
        select(model, "all")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_same_bits():
    cpu_model, gpu_model = tiny_llama(), tiny_llama().cuda()
    on_cpu, on_gpu = full(cpu_model), full(gpu_model)
    for p in (on_cpu, on_gpu):
        p.update(Population(4).ask(0), np.array([1, 2, 3, 4], np.float32), 0.01)
        p.perturb(Member(1, 0, 0, 1))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu_model.parameters(), gpu_model.parameters(), strict=True))
    assert on_cpu.digest() == on_gpu.digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "how", [{"restore": "subtract"}, {"keep_base": True}, {"keep_base": True, "master": torch.bfloat16}]
)
def test_both_stores_hold_the_same_bits(how, dtype):
    """Members, their way back, an update, the base and the distance from it: numba's, and torch's."""
    seen = []
    for store in (Host, Device):
        torch.manual_seed(0)
        parameters = {"a": nn.Parameter(torch.randn(33, 17), False), "b": nn.Parameter(torch.randn(40), False)}
        centre = FullRank(parameters, seed=1, sigma=0.1, dtype=dtype, store=store, **how)

        def live(centre=centre):
            return [p.data.clone() for p in centre.parameters]

        centre.become([Member(1, 0, 0, 1)])
        bits = live()
        centre.become([None])
        centre.update(Population(4).ask(1), np.array([0.1, 0.2, -0.3, 0.4], np.float32), 0.2)
        bits += live()
        if centre.keeps_base:
            with centre.as_base():
                bits += live()
            bits += [*live(), torch.tensor(centre.distance())]
        seen.append((centre.digest(), bits))
    (ours, a), (theirs, b) = seen
    assert ours == theirs
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
