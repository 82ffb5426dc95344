"""Embeddings of low-rank members: a member's lookups, and its head where that is tied, are those of W + sigma * E."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from runs import journal_of, trained, trainer, weights
from seedtune import ESConfig
from seedtune.cli.main import main
from seedtune.errors import ConfigError
from seedtune.es import update
from seedtune.es.population import CENTER, Member, Population
from seedtune.es.update import UpdateRule
from seedtune.noise import spec
from seedtune.perturb.lowrank.embedding import is_row_lookup
from seedtune.perturb.lowrank.members import LowRank
from seedtune.perturb.selection import select
from specs import low_rank_selection, perturbation
from tiny import make, save_tiny, tiny_llama
from tiny_engine import GREEDY, engine

TIED = "model.embed_tokens.weight"


def fresh(architecture):
    return tiny_llama(tied=True) if architecture == "tied llama" else make(architecture)


def add_noise(model, member, rank, sigma=0.05, seed=3):
    """The reference: E added to every matrix of the model, whatever uses it; learned positions are none of them."""
    key = spec.member_key(seed, member.iteration, member.pair)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and "wpe" not in name:
                e = spec.low_rank(key, spec.parameter_id(name), tuple(p.shape), rank)
                p += sigma * member.sign * torch.from_numpy(e)
    return model


def low_rank(model, rank, scope="all", **options):
    dtype = options.pop("dtype", torch.float32)
    spec = perturbation(rank, **{"seed": 3, "sigma": 0.05, "scope": scope, "lowrank_embeddings": True, **options})
    return LowRank(select(model, spec), spec, dtype)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("architecture", ["llama", "tied llama", "qwen2", "qwen3", "gemma", "gpt2"])
def test_a_batch_of_many_members_equals_each_alone(architecture, rank):
    model = fresh(architecture)
    ids = torch.randint(0, 200, (5, 7), generator=torch.Generator().manual_seed(0))
    members = [*Population(4, antithetic=True).ask(6)[:3], CENTER, Member(6, 3, 1, -1)]
    perturber = low_rank(model, rank)
    perturber.set_members(members)
    with torch.no_grad():
        together = model(ids).logits
    for row, member in enumerate(members):
        alone = fresh(architecture) if member == CENTER else add_noise(fresh(architecture), member, rank)
        with torch.no_grad():
            expected = alone(ids[row : row + 1]).logits[0]
        assert torch.allclose(together[row], expected, atol=5e-4, rtol=1e-3), (row, member)
    perturber.restore()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, fresh(architecture)(ids).logits)


def test_only_the_embeddings_move():
    ids = torch.randint(0, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    model, members = tiny_llama(), Population(2).ask(1)
    perturber = low_rank(model, 1, scope="embed")
    perturber.set_members(members)
    for row, member in enumerate(members):
        alone = tiny_llama()
        e = spec.low_rank(spec.member_key(3, 1, member.pair), spec.parameter_id(TIED), (261, 32), 1)
        with torch.no_grad():
            alone.model.embed_tokens.weight += 0.05 * torch.from_numpy(e)
            assert torch.allclose(model(ids).logits[row], alone(ids[row : row + 1]).logits[0], atol=2e-4)
    assert perturber.names == [TIED]


@pytest.mark.parametrize("architecture", ["tied llama", "llama", "gemma", "gpt2"])
def test_completions_of_members_in_one_batch_equal_each_alone(architecture):
    """With a shared prefix, and rows that finish at different steps."""
    e = engine(fresh(architecture), rank=2, lowrank_embeddings=True)
    prompts = e.encode(["what they share: a", "what they share: much longer", "what they share: b"], 12)
    rows = [(m, p) for m in Population(4, antithetic=True).ask(1) for p in prompts]
    e.set_members([m for m, _ in rows])
    together = e.generate([p for _, p in rows], GREEDY, 0)
    for (member, prompt), completion in zip(rows, together, strict=True):
        alone = engine(add_noise(fresh(architecture), member, 2, seed=1))
        assert alone.generate([prompt], GREEDY, 0)[0].ids == completion.ids


@pytest.mark.parametrize("architecture", ["tied llama", "gemma"])
def test_in_bfloat16_packed_layers_compute_nearly_the_same(architecture):
    ids = torch.randint(5, 200, (4, 7), generator=torch.Generator().manual_seed(0))
    logits = {}
    for dtype in ("float32", "bfloat16"):
        e = engine(fresh(architecture), dtype=dtype, rank=2, lowrank_embeddings=True)
        e.set_members([*Population(2).ask(1), CENTER, *Population(2, antithetic=True).ask(1)[1:]])
        with torch.no_grad():
            logits[dtype] = e.model(ids).logits.float()
    error = (logits["bfloat16"] - logits["float32"]).norm() / logits["float32"].norm()
    assert error < 0.03


@pytest.mark.parametrize("tied", [False, True])
def test_the_update_has_the_bits_of_the_reference_and_a_checkpoint_holds_them(tied, tmp_path):
    e = engine(tiny_llama(tied=tied), rank=2, lowrank_embeddings=True)
    members, c = Population(4).ask(1), torch.tensor([0.5, -1, 0, 0.25]).numpy()
    e.set_members(members)
    e.update(members, c, 0.1)
    keys = [spec.member_key(1, 1, k) for k in (0, 1, 3)]
    assert (TIED in e.center.names, "lm_head.weight" in e.center.names) == (True, not tied)
    for name, base in tiny_llama(tied=tied).named_parameters():
        if base.dim() == 2:
            noise = [spec.low_rank(key, spec.parameter_id(name), tuple(base.shape), 2).ravel() for key in keys]
            g, theta = update.weighted_noise(noise, c[[0, 1, 3]]), base.detach().numpy().ravel()
            expected, _, _ = update.apply(theta, g, UpdateRule(), 0.1, 1)
            assert torch.equal(e.center.parameter(name, torch.float32).ravel(), torch.from_numpy(expected)), name
            assert torch.equal(e.model.get_parameter(name).ravel(), torch.from_numpy(expected)), name
    e.set_members([*members, CENTER])
    e.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert all(torch.equal(loaded.get_parameter(n), e.center.parameter(n, torch.float32)) for n in e.center.names)


@pytest.mark.parametrize("tied", [False, True])
def test_a_run_with_embeddings_resumes_and_replays(tmp_path, tied):
    save_tiny(tmp_path / "base", tied=tied)
    options = {"perturbation": "lowrank", "lowrank_embeddings": True, "save_steps": 2}
    whole = trained(tmp_path, "whole", max_steps=4, **options)
    header = json.loads(journal_of(tmp_path, "whole").splitlines()[0])["base"]
    assert TIED in [name for name, *_ in header["scope"]]
    assert all("norm" in name for name in header["left_out"])
    trained(tmp_path, max_steps=3, **options)
    again = {**options, "model": str(tmp_path / "base"), "max_steps": 4}
    trainer(tmp_path, **again).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
    assert main(["replay", str(whole), "--out", str(tmp_path / "replayed")]) == 0
    assert weights(tmp_path / "replayed") == weights(whole / "checkpoint-4") == weights(tmp_path / "run/checkpoint-4")


def test_embeddings_that_cannot_move_are_named():
    selection = low_rank_selection(make("gpt2"), "all", lowrank_vectors=True, lowrank_embeddings=True)
    assert selection.skipped == {
        "transformer.wpe.weight": "not looked up once for every row, or used in other ways as well"
    }
    shared = tiny_llama()
    shared.other = nn.Embedding(261, 32)
    shared.other.weight = shared.model.embed_tokens.weight
    strange = tiny_llama()
    strange.model.embed_tokens = Copied(261, 32)
    for model in (shared, strange):
        with pytest.raises(ConfigError, match="holds no embedding that could move low-rank"):
            low_rank_selection(model, "all", lowrank_embeddings=True)


class Scaled(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 3


class Normed(nn.Embedding):
    def forward(self, ids):
        return nn.functional.normalize(super().forward(ids), dim=-1)


class Offset(nn.Embedding):
    def forward(self, ids):
        return super().forward(torch.arange(ids.shape[1]) + 2)


class Blank(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * (ids != self.padding_idx)[..., None] if self.padding_idx else super().forward(ids)


class Copied(nn.Embedding):
    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.copy = self.weight.detach().clone()

    def forward(self, ids):
        return nn.functional.embedding(ids, self.copy)


@pytest.mark.parametrize(
    ("kind", "moves"),
    [(nn.Embedding, True), (Scaled, True), (Normed, True), (Offset, False), (Blank, False), (Copied, False)],
)
def test_only_plain_lookups_move(kind, moves):
    module = kind(50, 8, padding_idx=7)
    with torch.no_grad():
        module.weight.normal_()
    before = {name: value for name, value in vars(module).items() if name != "_parameters"}
    assert is_row_lookup(module) == moves
    assert {name: value for name, value in vars(module).items() if name != "_parameters"} == before
    assert module.weight.shape == (50, 8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"perturbation": "full"}, "lowrank_embeddings is for perturbation: lowrank"),
        ({"perturbation": "lowrank", "engine": "vllm"}, "neither .* nor lowrank_embeddings"),
    ],
)
def test_settings_that_cannot_be_combined(options, says):
    with pytest.raises(ConfigError, match=says):
        ESConfig(lowrank_embeddings=True, **options)


def test_a_scope_without_embeddings(tmp_path):
    with pytest.raises(ConfigError, match="scope 'linear' holds no embedding"):
        trainer(tmp_path, perturbation="lowrank", lowrank_embeddings=True, scope="linear")
