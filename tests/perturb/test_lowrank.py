"""Low-rank members: a batch of many members computes as each alone, and the update is the sum of their noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from runs import ROWS, journal_of, trainer
from seedtune.errors import ConfigError, ModelError
from seedtune.es import update
from seedtune.es.population import CENTER, Member, Population
from seedtune.es.update import UpdateRule
from seedtune.noise import cpu, spec
from seedtune.noise.cpu import low_rank_factors
from seedtune.perturb.lowrank.members import LowRank
from seedtune.perturb.selection import select
from specs import low_rank_selection, perturbation
from tiny import make, tiny_llama
from tiny_engine import GREEDY, attached_state, engine


def low_rank(model, *, rank=1, scope="linear", vectors=False, **options):
    dtype = options.pop("dtype", torch.float32)
    spec = perturbation(rank, **{"seed": 3, "sigma": 0.05, "scope": scope, "lowrank_vectors": vectors, **options})
    return LowRank(select(model, spec), spec, dtype)


def add_noise(model, member, rank, sigma=0.05, seed=3, vectors=False):
    """The reference: E added to the weights, for one member; with `vectors`, noise to every vector."""
    key = spec.member_key(seed, member.iteration, member.pair)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if vectors and p.dim() == 1:
                noise = spec.normals(key, spec.parameter_id(name), spec.Purpose.FULL, 0, len(p))
                p += sigma * member.sign * torch.from_numpy(noise)
        for name, layer in low_rank_selection(model, "linear").linears.items():
            e = spec.low_rank(key, spec.parameter_id(name), tuple(layer.weight.shape), rank)
            layer.weight += sigma * member.sign * torch.from_numpy(e)
    return model


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 1500), st.integers(1, 4), st.integers(0, 4), st.data())
def test_the_fused_update_has_the_bits_of_the_reference_in_any_split(m, n, rank, count, data):
    rng = np.random.default_rng(m)
    theta = rng.standard_normal(m * n).astype(np.float32)
    keys = [spec.member_key(1, 2, k) for k in range(count)]
    c = rng.standard_normal(count).astype(np.float32)
    noise = [spec.low_rank(key, 9, (m, n), rank).ravel() for key in keys]
    g = update.weighted_noise(noise, c) if noise else np.zeros_like(theta)
    expected, _, _ = update.apply(theta, g, UpdateRule(), 0.01, 1)
    fast, cut = theta.copy(), data.draw(st.integers(0, m * n))
    factors = low_rank_factors(keys, 9, (m, n), rank)
    for a, b in [(0, cut), (cut, m * n)]:
        cpu.update(cpu.Weights.of(fast[a:b], cpu.F32), keys, c, 9, cpu.Step(0.01), start=a, factors=factors)
    assert np.array_equal(fast.view(np.uint32), expected.view(np.uint32))


def test_low_rank_noise_has_unit_variance_and_its_rank():
    for rank in (1, 4):
        e = spec.low_rank((1, 2), 3, (300, 200), rank).astype(np.float64)
        assert np.linalg.matrix_rank(e, tol=1e-3) == rank
        assert 0.8 < e.var() < 1.2


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "gpt2"])
def test_a_batch_of_many_members_equals_each_alone(architecture, rank, vectors):
    model = make(architecture)
    ids = torch.randint(5, 200, (5, 7), generator=torch.Generator().manual_seed(0))
    members = [*Population(4, antithetic=True).ask(6)[:3], CENTER, Member(6, 3, 1, -1)]
    heads = {"gpt2": r"h\.\d|ln_f"}.get(architecture, r"layers|norm")  # all but the embeddings and the head
    perturber = low_rank(model, rank=rank, scope=heads if vectors else "linear", vectors=vectors)
    perturber.set_members(members)
    with torch.no_grad():
        together = model(ids).logits
    for row, member in enumerate(members):
        alone = make(architecture) if member == CENTER else add_noise(make(architecture), member, rank, vectors=vectors)
        with torch.no_grad():
            expected = alone(ids[row : row + 1]).logits[0]
        assert torch.allclose(together[row], expected, atol=2e-4, rtol=1e-3), (row, member)
    perturber.restore()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, make(architecture)(ids).logits)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_every_linear_layer_of_an_architecture_is_found():
    assert len(low_rank_selection(make("qwen2"), "linear").linears) == 14
    assert len(low_rank_selection(make("gpt2"), "linear").linears) == 8
    assert len(low_rank_selection(make("llama"), "all").linears) == 15  # with the head, which is not tied


def test_completions_of_members_in_one_batch_equal_each_alone():
    e = engine(rank=2, scope="linear")
    prompts = e.encode(["a", "a longer prompt", "b"], 12)
    members = Population(4, antithetic=True).ask(1)
    rows = [(m, p) for m in members for p in prompts]
    e.set_members([m for m, _ in rows])
    together = e.generate([p for _, p in rows], GREEDY, 0)
    for (member, prompt), completion in zip(rows, together, strict=True):
        alone = engine(add_noise(tiny_llama(), member, 2, sigma=0.05, seed=1))
        assert alone.generate([prompt], GREEDY, 0)[0].ids == completion.ids


def test_replicas_agree_and_the_update_is_the_sum_of_the_members_noise():
    members, c = Population(4).ask(1), np.array([0.5, -1, 0, 0.25], np.float32)
    digests = set()
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_llama()
        perturber = low_rank(model, rank=2, dtype=dtype)
        perturber.set_members(members)
        perturber.update(members, c, 0.1)
        digests.add(perturber.digest())
    assert len(digests) == 1
    name, base = "model.layers.1.mlp.up_proj.weight", tiny_llama()
    e = [spec.low_rank(spec.member_key(3, 1, k), spec.parameter_id(name), (64, 32), 2) for k in range(4)]
    expected = base.get_parameter(name).detach().numpy() + 0.1 * sum(x * y for x, y in zip(c, e, strict=True))
    assert perturber.parameter(name, torch.float32).numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_detach_leaves_the_model_as_it_was(architecture):
    """Linear layers that move and that do not, embeddings, biases and norms; one layer had a forward of its own."""
    model = make(architecture)
    patched = next(module for module in model.modules() if type(module) in (torch.nn.Linear, Conv1D))
    patched.forward = own = patched.forward
    ids = torch.randint(5, 200, (4, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, state = model(ids).logits, attached_state(model)
        e = engine(model, rank=2, scope=r"0\.|norm|ln_f|embed|wte", lowrank_vectors=True, lowrank_embeddings=True)
        assert attached_state(model) != state
        e.set_members(Population(4).ask(1))
        assert not torch.equal(model(ids).logits, before)
        for _ in range(2):
            e.center.detach()
            assert attached_state(model) == state
            assert torch.equal(model(ids).logits, before)
    assert patched.forward is own


def test_quantized_weights_are_skipped_and_named_and_alone_are_an_error():
    model = tiny_llama()
    names = [f"model.layers.0.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")]
    for name in names:
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
        layer.forward = lambda x, out=layer.out_features: x.new_zeros(*x.shape[:-1], out)
    selection = low_rank_selection(model, "linear")
    assert all(selection.skipped[name].startswith("quantized") for name in names)
    assert len(selection.linears) == 11
    with pytest.raises(ModelError, match=r"every parameter in scope 'layers.0.mlp' is quantized"):
        low_rank_selection(model, "layers.0.mlp")


def test_vectors_move_and_resume(tmp_path):
    options = {"perturbation": "lowrank", "lowrank_vectors": True, "max_steps": 4, "save_steps": 2}
    t = trainer(tmp_path, output_dir=str(tmp_path / "whole"), **options)
    before = {name: p.clone() for name, p in t.model.named_parameters()}
    t.train()
    moved = {name for name, p in t.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "embed" not in name}
    assert set(t.engine.describe()["left_out"]) == {"model.embed_tokens.weight"}
    trainer(tmp_path, **{**options, "max_steps": 3}).train()
    trainer(tmp_path, **options).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")


def test_norms_alone_move(tmp_path):
    t = trainer(tmp_path, perturbation="lowrank", lowrank_vectors=True, scope="norm", learning_rate=0.5)
    before = {name: p.clone() for name, p in t.model.named_parameters()}
    t.train()
    moved = {name for name, p in t.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "norm" in name}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scope": "norm"}, "holds no linear layer"),
        ({"rank": 99}, "rank 99 is larger than"),
        ({"scope": "nothing"}, "matches none"),
        ({"restore": "subtract"}, "restore: subtract is for perturbation: full"),
    ],
)
def test_settings_that_are_refused(tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        trainer(tmp_path, perturbation="lowrank", **options)


def test_a_run_learns_resumes_and_saves(tmp_path):
    options = {
        "perturbation": "lowrank", "population_size": 16, "antithetic": True, "learning_rate": 0.1, "eval_steps": 5,
    }  # fmt: skip
    t = trainer(tmp_path, output_dir=str(tmp_path / "whole"), max_steps=20, **options)
    t.train()
    rewards = [line["eval/reward"] for line in t.run.evaluations]
    assert max(rewards) > rewards[0] + 0.2
    trainer(tmp_path, max_steps=10, **options).train()
    trainer(tmp_path, max_steps=20, **options).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
    files = [(tmp_path / name / "checkpoint-20/model.safetensors").read_bytes() for name in ("run", "whole")]
    assert files[0] == files[1]


def test_every_row_is_completed_when_chunks_split_a_member(tmp_path):
    t = trainer(tmp_path, perturbation="lowrank", generation_batch_size=5, max_steps=1, log_completions=True)
    t.train()
    import json

    rows = [json.loads(x) for x in (tmp_path / "run/completions/train-1.jsonl").read_text().splitlines()]
    assert [(r["member"], r["prompt"]) for r in rows] == [(m, p["prompt"]) for m in range(4) for p in ROWS]
