"""Full-rank perturbation of live torch models: exact restoration, no lost update, ties, scopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from seedtune.errors import ConfigError, ModelError
from seedtune.es import update
from seedtune.es.population import CENTER, Member, Population
from seedtune.es.update import UpdateRule
from seedtune.noise import cpu, spec
from seedtune.perturb.full_rank import FullRank
from seedtune.perturb.lowrank.members import LowRank
from seedtune.perturb.master import CpuMaster, DeviceMaster
from seedtune.perturb.selection import select
from specs import perturbation
from tiny import tiny_gpt2, tiny_llama


def full(model, *, dtype=torch.bfloat16, scope="all", sigma=0.01, seed=3, **options):
    parts = {k: options.pop(k) for k in ("live", "shards", "master") if k in options}
    spec = perturbation(seed=seed, sigma=sigma, scope=scope, **options)
    return FullRank(select(model, spec).parameters, spec, dtype, **parts)


def any_rank(model, rank, *, dtype=torch.bfloat16, scope="all", **options):
    if rank is None:
        return full(model, dtype=dtype, scope=scope, **options)
    spec = perturbation(rank, seed=3, sigma=0.01, scope=scope, **options)
    return LowRank(select(model, spec), spec, dtype)


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
def test_after_1000_members_the_center_has_not_changed(base, dtype):
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
    """Out of memory in the middle, say: what is there is neither the member nor the center."""
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

    perturber.on_change(fails)
    with pytest.raises(MemoryError), perturber.as_base():
        pass
    assert not same(told[0], before)
    assert same(bytes_of(model), before)


@pytest.mark.parametrize(
    "rule", [UpdateRule(), UpdateRule("momentum"), UpdateRule("adam", 0.9, 0.999, 1e-8, 0.1, True)]
)
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("master", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_center_that_was_reset_is_a_new_one(dtype, master, rank, rule):
    """Its live weights, its digest, and what updates make of it: the rule's moments and counts are gone, too."""
    members, c = Population(4).ask(1), np.array([0.5, -1, 0, 0.25], np.float32)
    how = {"dtype": dtype, "scope": "linear", "master_dtype": master, "rule": rule, "keep_base": True}
    model, fresh = tiny_llama(), tiny_llama()
    center, new = any_rank(model, rank, **how), any_rank(fresh, rank, **how)
    changed = []
    center.on_change(lambda: changed.append(True))
    for t in (1, 2):
        center.update(Population(4).ask(t), c, 0.3)
    center.set_members([members[1]] * 2)
    del changed[:]
    center.reset()
    assert changed
    assert same(bytes_of(model), bytes_of(fresh))
    assert (center.digest(), center.distance()) == (new.digest(), new.distance())
    assert center.update(members, c, 0.1) == new.update(members, c, 0.1)
    assert center.digest() == new.digest()
    assert same(bytes_of(model), bytes_of(fresh))


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
    assert {w.data_ptr() for w in perturber.master.weights} == pointers


def test_1000_tiny_updates_are_not_lost_in_bfloat16():
    """Each is far below half a unit in the last place of the live weights; together they are what they sum to."""
    model = tiny_llama(layers=1).to(torch.bfloat16)
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name).fill_(1.0)
    perturber = full(model, scope=name)
    members, c = [Member(0, 0, 0, 1)], np.array([1.0], np.float32)
    for _ in range(1000):
        perturber.update(members, c, learning_rate=2e-5)
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
    norm = perturber.update(members, np.array([1, -1, 0.5, 0], np.float32), learning_rate=0.1)
    moved = torch.cat([(p - before[n]).ravel() for n, p in model.named_parameters()])
    assert norm == pytest.approx(moved.double().norm().item(), rel=1e-5)
    assert norm == pytest.approx(0.1 * 1.5 * perturber.num_perturbed**0.5, rel=0.05)
    assert perturber.digest() != digest


RULES = [
    UpdateRule(), UpdateRule("momentum", weight_decay=0.1), UpdateRule("adam", weight_decay=0.1, anchored=True),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.optimizer)
@pytest.mark.parametrize("antithetic", [False, True], ids=["plain", "antithetic"])
@pytest.mark.parametrize("rank", [None, 1, 3], ids=["full", "rank1", "rank3"])
@pytest.mark.parametrize("master", ["float32", "bfloat16"])
def test_replicas_agree_whatever_their_dtype_and_threads(rule, antithetic, rank, master, monkeypatch):
    digests = set()
    for dtype, threads in [(torch.float32, 1), (torch.bfloat16, 2), (torch.float16, 3)]:
        cpu.set_threads(threads)
        center = any_rank(tiny_llama(), rank, dtype=dtype, rule=rule, master_dtype=master)
        monkeypatch.setattr(cpu, "_SPAN", 2**18 // threads**5)  # unlike ranges, too
        center.master.ranges = cpu.ranges(len(w) for w in center.master.weights)
        for t in range(3):
            members = Population(4, antithetic=antithetic).ask(t)
            center.update(members, np.array([1, -1, 0.5, 0], np.float32), learning_rate=0.01)
        digests.add(center.digest())
    cpu.set_threads(2)
    assert len(digests) == 1


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.optimizer)
def test_a_bfloat16_master_is_the_references_step_stochastically_rounded(rule, rank):
    name = "model.layers.0.mlp.up_proj.weight"
    center = any_rank(tiny_llama(), rank, scope=name, rule=rule, master_dtype="bfloat16")
    theta = center.parameter(name, torch.float32).numpy().ravel()
    base, number = theta.copy(), spec.parameter_id(name)
    assert np.array_equal(theta, tiny_llama().get_parameter(name).detach().bfloat16().float().numpy().ravel())
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    c = np.array([0.3, -0.2], np.float32)
    for t in (1, 2):
        center.update([Member(t, 0, 0, 1), Member(t, 1, 1, 1)], c, learning_rate=0.01)
        keys = [spec.member_key(3, t, pair) for pair in (0, 1)]
        if rank is None:
            noise = [spec.normals(key, number, spec.Purpose.FULL, 0, theta.size) for key in keys]
        else:
            noise = [spec.low_rank(key, number, (64, 32), rank).ravel() for key in keys]
        anchor = base if rule.anchored else None
        theta, m, v = update.apply(theta, update.weighted_noise(noise, c), rule, 0.01, t, m, v, anchor)
        bits = spec.round_stochastically(theta, keys[0], number)
        theta = (bits.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(center.parameter(name, torch.float32).numpy().ravel(), theta)


def test_a_bfloat16_master_loses_no_update_on_average():
    """Steps of a fortieth of what bfloat16 can hold: rounding to nearest would lose them all."""
    model, name = tiny_llama(), "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name).fill_(1.0)
    rule = UpdateRule(weight_decay=1.0)
    center = full(model, scope=name, master_dtype="bfloat16", dtype=torch.float32, rule=rule, keep_base=True)
    for t in range(200):
        center.update([Member(t, 0, 0, 1)], np.array([0.0], np.float32), learning_rate=1e-4)
    theta = center.parameter(name, torch.float32).numpy()
    assert theta.mean() == pytest.approx((1 - 1e-4) ** 200, abs=1e-3)
    assert center.master.weights[0].dtype == torch.bfloat16
    assert center.distance() == pytest.approx(float(np.linalg.norm(theta - 1)), rel=1e-5)


def test_anchored_decay_pulls_back_to_the_base():
    free, held = full(tiny_llama()), full(tiny_llama(), rule=UpdateRule(weight_decay=0.5, anchored=True))
    base = full(tiny_llama())
    for t in range(20):
        members = Population(2).ask(t)
        for perturber in (free, held):
            perturber.update(members, np.array([1, -1], np.float32), learning_rate=0.1)

    def distance(p):
        return sum(
            float(torch.sum((p.parameter(n, torch.float32) - base.parameter(n, torch.float32)) ** 2)) for n in p.names
        )

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
    parameters = select(model, perturbation()).parameters
    assert "lm_head.weight" not in parameters
    perturber = full(model)
    perturber.perturb(Member(0, 0, 0, 1))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert perturber.num_perturbed == sum(p.numel() for p in model.parameters())


def test_scopes():
    model = tiny_llama()
    everything = set(select(model, perturbation()).parameters)
    linear = set(select(model, perturbation(scope="linear")).parameters)
    assert linear < everything
    assert len(linear) == 2 * 7
    assert not any("norm" in n or "embed" in n or "lm_head" in n for n in linear)
    assert set(select(model, perturbation(scope=r"layers\.1\..*norm")).parameters) == {
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
    }
    assert all(
        n.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        for n in select(tiny_gpt2(), perturbation(scope="linear")).parameters
    )


@pytest.mark.parametrize("scope", ["liner", "layers\\.9\\."])
def test_a_scope_that_matches_nothing_shows_some_names(scope):
    with pytest.raises(ConfigError, match=r"matches none of the model's[\s\S]*embed_tokens"):
        select(tiny_llama(), perturbation(scope=scope))


def test_a_scope_that_is_no_regular_expression():
    with pytest.raises(ConfigError, match="regular expression"):
        select(tiny_llama(), perturbation(scope="layers["))


def test_quantized_weights_are_refused():
    model = torch.nn.Sequential()
    model.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="quantized"):
        select(model, perturbation())


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
    "how", [{"restore": "subtract"}, {"keep_base": True}, {"keep_base": True, "master_dtype": "bfloat16"}]
)
def test_both_stores_hold_the_same_bits(how, dtype):
    """Members, their way back, an update, the base and the distance from it: numba's, and torch's."""
    seen = []
    for store in (CpuMaster, DeviceMaster):
        torch.manual_seed(0)
        parameters = {"a": nn.Parameter(torch.randn(33, 17), False), "b": nn.Parameter(torch.randn(40), False)}
        center = FullRank(parameters, perturbation(seed=1, sigma=0.1, **how), dtype, master=store)

        def live(center=center):
            return [p.data.clone() for p in center.parameters]

        center.set_members([Member(1, 0, 0, 1)])
        bits = live()
        center.set_members([CENTER])
        center.update(Population(4).ask(1), np.array([0.1, 0.2, -0.3, 0.4], np.float32), 0.2)
        bits += live()
        if center.keeps_base:
            with center.as_base():
                bits += live()
            bits += [*live(), torch.tensor(center.distance())]
        seen.append((center.digest(), bits))
    (ours, a), (theirs, b) = seen
    assert ours == theirs
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
