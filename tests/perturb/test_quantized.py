"""Low-rank members of quantized layers: noise is added beside them, the master is dequantized, updates requantize."""

from __future__ import annotations

import json
import tempfile

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config

from runs import head_of, journal_of, trained, trainer, weights
from seedtune.cli.main import main
from seedtune.engines import load_errors
from seedtune.errors import ModelError
from seedtune.es import update
from seedtune.es.population import CENTER, Member, Population
from seedtune.es.update import UpdateRule
from seedtune.noise import spec
from seedtune.perturb.bitsandbytes_layers import dequantize_model, quantized_weights
from seedtune.training import replay
from tiny import SHAPE, tiny_llama, tiny_tokenizer
from tiny_engine import GREEDY, attached_state, engine

bitsandbytes = pytest.importorskip("bitsandbytes")
from transformers import BitsAndBytesConfig  # noqa: E402

KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "stored": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}
LAYER = "model.layers.1.mlp.up_proj.weight"
MEMBERS, C = Population(4).ask(1), np.array([0.5, -1, 0, 0.25], np.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model in full precision, to be quantized as it is read."""
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(hidden=64).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load(folder, kind="nf4", dtype=torch.float32):
    how = BitsAndBytesConfig(**KINDS[kind])
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=how)


def values(model):
    return {name: weight.dequantize() for name, weight in quantized_weights(model).items()}


def alone(model, member, rank, sigma=0.05, seed=1):
    """The reference: y = layer(x) + sigma * sign * x E^T for quantized layers, E added to the head."""
    key = spec.member_key(seed, member.iteration, member.pair)
    for name, weight in quantized_weights(model).items():
        e = torch.from_numpy(spec.low_rank(key, spec.parameter_id(name), weight.shape, rank)) * sigma * member.sign
        weight.layer.register_forward_hook(lambda _, x, y, e=e: y + nn.functional.linear(x[0], e))
    head = model.lm_head.weight
    e = spec.low_rank(key, spec.parameter_id("lm_head.weight"), tuple(head.shape), rank)
    head.data += sigma * member.sign * torch.from_numpy(e)
    return model


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_many_members_equals_each_alone(base, kind, rank):
    ids = torch.randint(5, 200, (5, 7), generator=torch.Generator().manual_seed(0))
    members = [*Population(4, antithetic=True).ask(6)[:3], CENTER, Member(6, 3, 1, -1)]
    e = engine(load(base, kind), rank=rank)
    assert len(e.describe()["quantized"]) == 14
    assert LAYER in e.center.names
    e.set_members(members)
    with torch.no_grad():
        together = e.model(ids).logits
        near = {"atol": 0.2} if kind == "int8" else {"atol": 1e-3, "rtol": 1e-3}  # it rounds activations, too
        for row, member in enumerate(members):
            fresh = load(base, kind) if member == CENTER else alone(load(base, kind), member, rank)
            quantized_weights(fresh)  # no repacking
            assert torch.allclose(together[row], fresh(ids[row : row + 1]).logits[0], **near), (row, member)
        e.restore()
        assert not torch.allclose(together[0], together[1], atol=0.3)
        fresh = load(base, kind)
        quantized_weights(fresh)
        assert torch.equal(e.model(ids).logits, fresh(ids).logits)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_detach_leaves_quantized_layers_as_they_were(base, kind):
    ids = torch.randint(5, 200, (4, 7), generator=torch.Generator().manual_seed(0))
    model = load(base, kind)
    with torch.no_grad():
        quantized_weights(model)  # no repacking
        before, state = model(ids).logits, attached_state(model)
        e = engine(model, rank=2)
        e.set_members(MEMBERS)
        assert not torch.equal(model(ids).logits, before)
        e.center.detach()
        assert torch.equal(model(ids).logits, before)
    assert attached_state(model) == state


@pytest.mark.parametrize("kind", KINDS)
def test_dequantize_and_quantize_is_idempotent(base, kind):
    for name, weight in quantized_weights(load(base, kind)).items():
        before = weight.dequantize()
        weight.quantize_from(before)
        assert torch.equal(weight.dequantize(), before), name
        assert (weight.dequantize() - tiny_llama(hidden=64).get_parameter(name)).abs().max() < 0.2


@pytest.mark.parametrize("master", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_of_the_master_has_the_bits_of_the_reference_and_is_quantized(base, kind, master):
    e = engine(load(base, kind), rank=2, master_dtype=master, dtype="bfloat16")
    before = values(load(base, kind))
    e.set_members(MEMBERS)
    e.update(MEMBERS, C, 0.1)
    keys = [spec.member_key(1, 1, k) for k in (0, 1, 3)]
    for name, weight in quantized_weights(e.model).items():
        number = spec.parameter_id(name)
        theta = before[name].to(getattr(torch, master)).float().numpy().ravel()
        noise = [spec.low_rank(key, number, weight.shape, 2).ravel() for key in keys]
        theta, _, _ = update.apply(theta, update.weighted_noise(noise, C[[0, 1, 3]]), UpdateRule(), 0.1, 1)
        if master == "bfloat16":
            bits = spec.round_stochastically(theta, spec.member_key(1, 1, 0), number)
            theta = (bits.astype(np.uint32) << 16).view(np.float32)
        expected = torch.from_numpy(theta).view(weight.shape)
        assert torch.equal(e.center.parameter(name, torch.float32), expected), name
        codes, state = quantize(expected, kind)
        assert torch.equal(weight.packed.codes.view(codes.dtype).view(codes.shape), codes), name
        assert torch.equal(getattr(weight.packed.scales, "absmax", weight.packed.scales), state), name
        assert not torch.equal(weight.dequantize(), before[name])


def quantize(tensor, kind):
    functional = bitsandbytes.functional
    if kind == "int8":
        return functional.int8_vectorwise_quant(tensor)[:2]
    codes, state = functional.quantize_4bit(tensor, quant_type="fp4" if kind == "fp4" else "nf4")
    return codes, state.absmax


def test_steps_smaller_than_a_code_accumulate_in_the_master(base):
    e = engine(load(base), rank=1, scope=LAYER)
    before = values(e.model)[LAYER]
    for _ in range(20):
        e.update([Member(1, 0, 0, 1)], np.array([1.0], np.float32), 1e-5)
    noise = spec.low_rank(spec.member_key(1, 1, 0), spec.parameter_id(LAYER), (128, 64), 1)
    moved = e.center.parameter(LAYER, torch.float32) - before
    assert torch.allclose(moved, 2e-4 * torch.from_numpy(noise), atol=2e-6)
    small = np.abs(noise) < 0.5
    unchanged = (values(e.model)[LAYER] - before).abs().numpy()[small] < 1e-3  # scales follow, codes do not
    assert unchanged.mean() > 0.95


def test_a_run_resumes_with_the_same_bits(tmp_path, base):
    options = {"perturbation": "lowrank", "max_steps": 4, "save_steps": 2, "dtype": "bfloat16"}
    whole = trainer(tmp_path, model=load(base), output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    header = json.loads(journal_of(tmp_path, "whole").splitlines()[0])["base"]
    assert "14 layers stay nf4; their master is float32" in dict(head_of(whole))["quantized"]
    assert header["quantized"][LAYER] == "nf4"
    assert [LAYER, spec.parameter_id(LAYER), [128, 64]] in header["scope"]
    trainer(tmp_path, model=load(base), **{**options, "max_steps": 3}).train()
    resumed = trainer(tmp_path, model=load(base), **options)
    resumed.train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
    assert weights(tmp_path / "run/checkpoint-4") == weights(tmp_path / "whole/checkpoint-4")
    live = values(resumed.model)[LAYER]
    codes, _ = quantize(resumed.engine.center.parameter(LAYER, torch.float32), "nf4")
    assert torch.equal(quantized_weights(resumed.model)[LAYER].packed.codes, codes)
    for state in (tmp_path / "run").glob("checkpoint-*/state.safetensors"):
        state.unlink()  # then it starts from the base
    again = trainer(tmp_path, model=load(base), **options)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(values(again.model)[LAYER], live)


@pytest.mark.parametrize("kind", ["nf4", "double", "int8"])
def test_a_run_on_a_quantized_folder_replays_and_its_patch_applies(tmp_path, base, kind, capsys):
    load(base, kind).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    run = trained(tmp_path, perturbation="lowrank", lowrank_vectors=True, antithetic=True)
    assert main(["replay", str(run), "--out", str(tmp_path / "replayed")]) == 0
    assert main(["export", str(run), "--patch", str(tmp_path / "x.seedtune")]) == 0
    assert main(["apply", str(tmp_path / "x.seedtune"), "--out", str(tmp_path / "applied")]) == 0
    assert "digests each checked" in capsys.readouterr().out
    assert weights(tmp_path / "replayed") == weights(tmp_path / "applied") == weights(run / "checkpoint-3")
    assert main(["apply", *[str(tmp_path / "x.seedtune")] * 2, "--out", str(tmp_path / "twice")]) == 0
    patch, twice = replay.load(run), replay.rebuild([replay.load(run)])
    for t in (1, 2, 3):
        twice.update(Population(4, True).ask(t), patch.coefficients_T_N[t - 1], float(patch.rates_T[t - 1]))
    twice.save(tmp_path / "expected")
    assert weights(tmp_path / "twice") == weights(tmp_path / "expected") != weights(tmp_path / "applied")
    assert "quantization_config" not in json.loads((tmp_path / "twice/config.json").read_text())


def test_given_completions_are_read_by_members_of_a_quantized_base(tmp_path, base):
    """Transformers' own loss of the quantized model is the reference."""
    rows, how = [{"prompt": "say:", "completion": x} for x in ("yes", "no")], {"perturbation": "lowrank"}
    run = trainer(tmp_path, rows, load(base), "log_likelihood", antithetic=True, eval_steps=0, max_steps=2, **how)
    run.train()
    first, last = run.run.evaluations
    losses = []
    for row in rows:
        before, text = (tiny_tokenizer()(x)["input_ids"] for x in (row["prompt"], row["completion"] + "<|end|>"))
        labels = torch.tensor([[*[-100] * len(before), *text]])
        with torch.no_grad():
            losses.append(float(load(base)(input_ids=torch.tensor([[*before, *text]]), labels=labels).loss))
    assert first["eval/reward"] == pytest.approx(-np.mean(losses), abs=0.03)  # its kernels round by the shape
    assert last["eval/reward"] != first["eval/reward"]


def test_biases_of_quantized_layers_move_too():
    shape = {**SHAPE, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(Qwen2Config(**shape)).save_pretrained(folder)
        model, fresh = load(folder), load(folder)
    ids, member = torch.randint(5, 200, (2, 7)), MEMBERS[1]
    e = engine(model, rank=1, lowrank_vectors=True)
    assert "model.layers.0.self_attn.q_proj.bias" in e.center.names
    e.set_members([CENTER, member])
    with torch.no_grad():
        for name, p in fresh.named_parameters():
            if p.dim() == 1:
                key = spec.member_key(1, 1, member.pair)
                p += 0.05 * torch.from_numpy(spec.normals(key, spec.parameter_id(name), spec.Purpose.FULL, 0, len(p)))
        assert torch.allclose(e.model(ids).logits[1], alone(fresh, member, 1)(ids[1:]).logits[0], atol=1e-3, rtol=1e-3)


def test_another_base_has_another_digest(base):
    one, other = load(base), load(base)
    weight = quantized_weights(other)[LAYER]
    weight.layer.weight.data[3] ^= 1
    found = [engine(model, rank=1).describe()["digest"] for model in (one, other, load(base), load(base, "fp4"))]
    assert found[0] == found[2]
    assert len({*found}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_the_master_and_loads_without_bitsandbytes(tmp_path, base, kind, dtype):
    e = engine(load(base, kind, dtype), rank=1, dtype="bfloat16")
    e.update(MEMBERS, C, 0.1)
    e.set_members(MEMBERS)
    e.save(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {type(m) for m in loaded.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    for name, p in loaded.named_parameters():
        assert p.dtype == dtype
        if name in e.center.names:
            assert torch.equal(p, e.center.parameter(name, dtype)), name
    if kind in ("nf4", "fp4") and dtype == torch.float32:  # quantized again, it is the center of the run
        again = values(load(tmp_path, kind))
        assert all(torch.equal(again[name], now) for name, now in values(e.model).items())
    assert e.generate(e.encode(["a"], 4), GREEDY, 0)


@pytest.mark.parametrize("kind", ["nf4", "stored", "int8"])
def test_layers_out_of_scope_are_saved_unchanged(tmp_path, base, kind):
    e = engine(load(base, kind), rank=1, scope="layers.1.mlp")
    assert [*e.describe()["quantized"]] == e.center.names
    e.update(MEMBERS, C, 0.1)
    e.save(tmp_path)
    loaded, before = AutoModelForCausalLM.from_pretrained(tmp_path), values(load(base, kind))
    for name, was in before.items():
        assert torch.equal(loaded.get_parameter(name), was) == (name not in e.center.names)


def test_transposed_weights_are_saved_in_the_layout_of_the_model(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(tiny_tokenizer()), n_embd=64, n_layer=1, n_head=4, n_positions=64)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    e = engine(load(tmp_path / "base"), rank=1, scope="linear")
    with pytest.raises(ModelError, match="Apply one patch at a time"):
        dequantize_model(e.model)
    name = "transformer.h.0.attn.c_attn.weight"
    assert e.center.shapes[e.center.names.index(name)] == (192, 64)
    e.update(MEMBERS, C, 0.1)
    e.save(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.get_parameter(name), e.center.parameter(name, torch.float32).T)


def test_distance_and_as_base(base):
    e = engine(load(base, "double"), rank=1, keep_base=True, scope="linear")
    before, norm = values(e.model), e.update(MEMBERS, C, 0.1)
    assert e.distance() == pytest.approx(norm, rel=1e-5)
    now = values(e.model)
    with e.center.as_base():
        assert all(torch.equal(x, before[name]) for name, x in values(e.model).items())
    assert all(torch.equal(x, now[name]) for name, x in values(e.model).items())
    anchored = engine(load(base), rank=1, scope=LAYER, rule=UpdateRule(weight_decay=1.0, anchored=True))
    anchored.update(MEMBERS, np.zeros(4, np.float32), 0.1)
    assert torch.equal(anchored.center.parameter(LAYER, torch.float32), values(load(base))[LAYER])


@pytest.mark.parametrize("kind", ["nf4", "stored", "int8"])
def test_full_rank_members_of_quantized_layers_are_refused_or_named(base, kind):
    with pytest.raises(ModelError, match=r"every parameter in scope 'linear' is quantized[\s\S]*perturbation: lowrank"):
        engine(load(base, kind), scope="linear")
    e = engine(load(base, kind))
    assert e.describe()["left_out"][LAYER].startswith("quantized: full-rank noise cannot")
    assert "quantized" not in e.describe()
    assert len(e.center.names) == 7


def test_layers_with_blocks_across_rows_are_skipped(tmp_path):
    tiny_llama(hidden=32).save_pretrained(tmp_path)
    e = engine(load(tmp_path), rank=1)
    narrow = e.describe()["left_out"]["model.layers.0.mlp.up_proj.weight"]  # 32 numbers a row
    assert narrow.startswith("quantized in blocks of 64 across its rows")
    assert [*e.describe()["quantized"]] == [f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1)]  # 64


def test_a_repacked_model_is_refused(base):
    model = load(base)
    model.get_submodule(LAYER.removesuffix(".weight")).weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match="load it again"):
        engine(model, rank=1)


def test_running_changes_no_scale(base):
    """On CPUs that multiply bfloat16, bitsandbytes rounds scales when a layer first runs."""
    e = engine(load(base), rank=1, dtype="bfloat16")
    e.generate(e.encode(["a"], 4), GREEDY, 0)
    assert all(torch.equal(x, e.center.parameter(name, torch.float32)) for name, x in values(e.model).items())


def test_bitsandbytes_is_missing():
    error = ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes: `pip install -U bitsandbytes`")
    assert "pip install bitsandbytes" in load_errors.explain("org/name", error, "smollm2-135m-instruct")
