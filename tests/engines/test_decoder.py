"""Continuous batching: however rows are batched, each is completed as if it were alone, and chunks are reproducible."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MambaConfig, Qwen2Config, Qwen3MoeConfig

from seedtune.engines.base import Sampling
from seedtune.engines.hf import attention
from seedtune.engines.hf.decoder import Decoder
from seedtune.engines.hf.kv_cache import KVCache
from seedtune.engines.hf.sampler import first_argmax, kl_from_uniform
from seedtune.es.population import CENTER, Population
from seedtune.perturb.lowrank.linear import can_pack
from specs import low_rank_selection
from tiny import SHAPE, make, tiny_gpt2, tiny_llama
from tiny_engine import GREEDY, SHARED, WORDS, alone, engine


def sliding(kind):
    """Models with sliding-window attention in some layers."""
    if kind == "qwen2":
        config = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=1)
    else:
        config = Gemma3TextConfig(**SHAPE, sliding_window=6, layer_types=["sliding_attention", "full_attention"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).float().eval()


@pytest.mark.parametrize("rows_at_once", [1, 3, 20])
@pytest.mark.parametrize(
    "model",
    [tiny_llama, tiny_gpt2, lambda: sliding("qwen2"), lambda: sliding("gemma3")],
    ids=["llama", "gpt2", "qwen2-sliding", "gemma3"],
)
@pytest.mark.parametrize("texts", [WORDS, SHARED], ids=["no-prefix", "shared-prefix"])
def test_a_row_is_completed_as_alone_for_any_number_of_slots(model, texts, rows_at_once):
    made = model()
    made.generation_config.eos_token_id = list(range(0, 260, 6))
    e = engine(made)
    prompts = e.encode(texts * 3, 40)
    got = e.generate(prompts, Sampling(40, rows_at_once=rows_at_once), 0)
    expected = {p.ids: alone(e, p, 40) for p in prompts[: len(texts)]}
    assert [c.ids for c in got] == [expected[p.ids] for p in prompts]
    assert model is tiny_gpt2 or len({len(c.ids) for c in got}) > 1  # rows finished at different times


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_has_two_names(name):
    """That of transformers before 5.24, and the one since."""
    plain, model, calls = tiny_llama(), tiny_llama(), []
    forward, signature = model.forward, inspect.signature(model.forward)
    installed = "cache" if "cache" in signature.parameters else "past_key_values"

    def renamed(*args, **more):
        calls.append(name in more)
        return forward(*args, **{installed if n == name else n: value for n, value in more.items()})

    renamed.__signature__ = signature.replace(
        parameters=[p.replace(name=name if p.name == installed else p.name) for p in signature.parameters.values()]
    )
    model.forward = renamed
    e, other = engine(model), engine(plain)
    assert e.generate(e.encode(WORDS, 12), GREEDY, 0) == other.generate(other.encode(WORDS, 12), GREEDY, 0)
    assert sum(calls) > 10


@pytest.mark.parametrize("perturbation", [None, 2])
def test_a_chunk_gives_the_same_bits_whatever_ran_before(perturbation):
    e = engine(dtype="bfloat16", rank=perturbation, scope="linear")
    members = Population(4, antithetic=True).ask(1) if perturbation else [CENTER] * 4
    prompts = e.encode(SHARED, 40)
    sampling = Sampling(40, rows_at_once=3, logprobs=True)

    def chunk(who, asked):
        e.set_members([m for m in who for _ in asked])
        return e.generate([p for _ in who for p in asked], sampling, 0)

    first = chunk(members, prompts)
    chunk([CENTER] if perturbation else [CENTER] * 2, e.encode(["x" * 60, "y"], 40))
    e.restore()
    assert chunk(members, prompts) == first  # log-probabilities too, to the bit


def test_check_every_does_not_change_completions():
    texts, answers = {}, []
    e = engine()
    ids = [p.ids for p in e.encode(WORDS * 2, 40)]
    for every in (1, 4):
        decoder = Decoder(e.model, stops={0}, pad=1, check_every=every, prefill_tokens=20)
        texts.clear()
        for seed in (0, 1):
            decoder.decode(
                ids, [0] * len(ids), Sampling(40, temperature=seed), seed, 4, lambda rows: None,
                lambda written: texts.update({w.row: w.ids for w in written}),
            )  # fmt: skip
            answers.append(dict(texts))
    assert answers[:2] == answers[2:]


def test_what_a_row_samples_does_not_depend_on_its_slot():
    e = engine()
    prompts = e.encode(WORDS, 12)
    hot = [Sampling(12, temperature=1.0, top_p=0.9, top_k=50, rows_at_once=n) for n in (1, 2, 5)]
    a, b, c = (e.generate(prompts, sampling, 3) for sampling in hot)
    assert a == b == c


@pytest.mark.parametrize("rows_at_once", [3, None])
def test_sampled_rows_share_a_batch_with_greedy_rows(rows_at_once):
    e = engine()
    prompts = e.encode(WORDS, 16)
    both = e.generate(prompts * 2, Sampling(16, first_sampled_row=5, rows_at_once=rows_at_once), 7)
    assert both[:5] == e.generate(prompts, Sampling(16), 0)
    assert both[5:] == e.generate(prompts * 2, Sampling(16, temperature=1.0), 7)[5:]


def test_sampled_rows_share_a_chunk_with_greedy_rows_through_transformers():
    config = MambaConfig(vocab_size=261, hidden_size=32, state_size=8, num_hidden_layers=2)
    e = engine(AutoModelForCausalLM.from_config(config).float().eval())
    assert e.decoder is None
    prompts = e.encode(WORDS, 8)
    both = e.generate(prompts * 2, Sampling(8, first_sampled_row=5, rows_at_once=4), 7)
    greedy = e.generate(prompts, Sampling(8, rows_at_once=4), 0)
    assert [c.ids for c in both[:4]] == [c.ids for c in greedy[:4]]
    assert [c.ids for c in both[5:]] != [c.ids for c in greedy]


def test_sampling_follows_the_distribution():
    e = engine()
    (prompt,) = e.encode(["hello"], 1)
    with torch.no_grad():
        expected = e.model(torch.tensor([prompt.ids])).logits[0, -1].softmax(-1)
    drawn = e.generate([prompt] * 4000, Sampling(1, temperature=1.0), 5)
    counts = torch.bincount(torch.tensor([c.ids[0] if c.ids else 0 for c in drawn]), minlength=len(expected))
    assert (counts / 4000 - expected).abs().max() < 0.04


def test_what_is_measured_of_tokens_is_that_of_a_teacher_forced_pass():
    """Of the token that ended a completion, too; by the model's own distribution, whatever was cut off."""
    model = tiny_llama()
    model.generation_config.eos_token_id = list(range(0, 260, 6))
    e = engine(model)
    prompts = e.encode(WORDS, 12)
    asked = {"logprobs": True, "kl_uniform": True}
    ended = 0
    for sampling in (Sampling(12, **asked), Sampling(12, temperature=2.0, top_k=5, repetition_penalty=1.3, **asked)):
        for prompt, completion in zip(prompts, e.generate(prompts, sampling, 1), strict=True):
            ids = torch.tensor([[*prompt.ids, *completion.chosen]])
            with torch.no_grad():
                logprobs = e.model(ids).logits[0].log_softmax(-1)[len(prompt.ids) - 1 : -1]
            expected = logprobs.gather(1, ids[0, len(prompt.ids) :, None])[:, 0]
            assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
            size = logprobs.shape[-1]
            kl = (torch.full_like(logprobs, 1 / size) * (-math.log(size) - logprobs)).sum(-1)
            assert completion.kl_uniform == pytest.approx(kl.tolist(), abs=1e-4)
            ended += completion.stop is not None
    assert ended
    bare = e.generate(prompts, GREEDY, 1)[0]
    assert (bare.logprobs, bare.kl_uniform) == (None, None)


def test_probabilities_that_underflow_have_finite_logarithms():
    """Float32 has none below 1e-45; and tokens that a model rules out do not count."""
    logits = torch.tensor([[0.0, -3e4, -torch.inf, -2e4]])
    assert kl_from_uniform(logits.log_softmax(-1)).item() == pytest.approx(5e4 / 3 - math.log(3))
    model = tiny_llama()
    model.lm_head.weight.data *= 1e4
    e = engine(model)
    sampling = Sampling(12, temperature=1e4, logprobs=True, kl_uniform=True)
    for completion in e.generate(e.encode(WORDS, 12), sampling, 1):
        assert min(completion.logprobs) < -1e3
        assert math.isfinite(sum(completion.logprobs) + sum(completion.kl_uniform))


@pytest.mark.parametrize("model", [tiny_llama, tiny_gpt2, lambda: sliding("gemma3")], ids=["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("rows_at_once", [3, 20])
def test_members_whose_prompts_begin_differently_share_what_their_own_begin_with(model, rows_at_once, monkeypatch):
    e = engine(model(), rank=1, scope="linear", sigma=0.0)
    beginnings = ("shared beginning, ", "another and longer beginning of it, ", "")
    own = [e.encode([begin + word for word in ("a", "bb", "then something longer", "dddd")], 8) for begin in beginnings]
    prompts, copied = [p for some in own for p in some], []
    copy_from = KVCache.copy_from
    monkeypatch.setattr(KVCache, "copy_from", lambda self, *rest: copied.append(rest) or copy_from(self, *rest))
    e.set_members([m for m, some in zip(Population(3).ask(1), own, strict=True) for _ in some])
    got = e.generate(prompts, Sampling(8, rows_at_once=rows_at_once), 0)
    e.restore()
    assert [c.ids for c in got] == [alone(e, p, 8) for p in prompts]
    assert 4 <= sum(len(targets) for _, _, targets, _, _ in copied) <= 8  # of the last member's prompts nothing is


def test_a_shared_prefix_is_prefilled_once_per_member(monkeypatch):
    e = engine(rank=1, scope="linear")
    prompts = e.encode(SHARED, 1)
    seen = []
    forward = Decoder.forward
    monkeypatch.setattr(
        Decoder, "forward", lambda self, cache, ids, *rest: seen.append(ids.numel()) or forward(self, cache, ids, *rest)
    )
    members = Population(4).ask(1)
    e.set_members([m for m in members for _ in prompts])
    e.generate([p for _ in members for p in prompts], Sampling(1), 0)
    prefix, longest = len("shared beginning, "), max(len(p.ids) for p in prompts)
    assert seen[0] == 4 * prefix
    assert sum(seen) <= 4 * prefix + 16 * (longest - prefix) + 16  # and at most one step


def test_rows_are_handed_over_as_they_finish():
    e = engine()
    prompts = e.encode(WORDS * 2, 40)
    handed = []
    whole = e.generate(prompts, Sampling(40, rows_at_once=4), 0, lambda ended: handed.append(dict(ended)))
    assert {n: c for some in handed for n, c in some.items()} == dict(enumerate(whole))
    assert sum(map(bool, handed)) > 2


def test_an_interruption_leaves_the_engine_usable():
    e = engine()
    prompts = e.encode(WORDS, 12)
    before = e.generate(prompts, GREEDY, 0)

    def stop(ended):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        e.generate(prompts, GREEDY, 0, stop)
    assert e.generate(prompts, GREEDY, 0) == before


def test_a_model_without_a_kv_cache_goes_through_transformers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            MambaConfig(vocab_size=261, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=0)
        ).eval()
    e = engine(model)
    assert e.decoder is None
    prompts = e.encode(["hello", "there"], 12)
    got = e.generate(prompts, Sampling(12, rows_at_once=1), 0)
    assert [c.ids for c in got] == [alone(e, p) for p in prompts]


def test_layers_that_regroup_rows_are_skipped_and_named():
    shape = {**SHAPE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**shape)).float().eval()
    selection = low_rank_selection(model, "all")
    assert len(selection.linears) == 9  # four of attention in each layer, and the head
    assert any("experts" in name for name in selection.skipped)
    e = engine(model, rank=1)
    assert e.describe()["left_out"] == selection.skipped
    members = Population(2).ask(1)
    e.set_members(members)
    assert len(e.generate(e.encode(["a", "b"], 4), Sampling(4), 0)) == 2


@given(st.lists(st.lists(st.integers(0, 3), min_size=256, max_size=256), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_first_argmax_is_the_first_of_the_greatest(rows):
    logits = torch.tensor(rows).bfloat16()
    assert first_argmax(logits).tolist() == [row.index(max(row)) for row in rows]
    assert first_argmax(logits[:, :200]).tolist() == [row[:200].index(max(row[:200])) for row in rows]


def test_attention_of_a_decode_step_equals_transformers(monkeypatch):
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, h, n, 16, generator=g) for h, n in ((6, 1), (2, 9), (2, 9)))
    mask = torch.rand(4, 1, 1, 9, generator=g) > 0.4
    mask[..., -1] = True
    exact, _ = attention.sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    ours, _ = attention.attend(module, *(x.bfloat16() for x in (query, key, value)), mask, scaling=0.3)
    assert ours.shape == exact.shape
    assert torch.allclose(ours.float(), exact, atol=0.03)


@pytest.mark.parametrize("columns", [9, 149])
def test_attention_of_a_decode_step_has_the_bits_of_its_formula(columns):
    """Journals rest on completions, so however fast it is, it rounds as it always did."""
    g = torch.Generator().manual_seed(1)
    query = torch.randn(5, 6, 1, 16, generator=g).bfloat16()
    key, value = ((torch.randn(5, 2, columns, 16, generator=g) * 4).bfloat16() for _ in range(2))
    mask = torch.rand(5, 1, 1, columns, generator=g) > 0.4
    mask[0] = False  # attention to nothing is the mean
    scores = torch.matmul(key, query.view(5, 2, 3, 16).transpose(2, 3)).transpose(2, 3).float() * 0.3
    probabilities = scores.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1).bfloat16()
    ours, _ = attention.attend(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    assert torch.equal(ours, torch.matmul(probabilities, value).view(5, 1, 6, 16))


@pytest.mark.skipif(not can_pack(torch.empty(0).bfloat16()), reason="this processor does not multiply bfloat16")
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_packed_linear_layers_compute_nearly_the_same(architecture):
    """One batch in bfloat16, with packed and grouped layers, against the same in float32, layer by layer."""
    ids = torch.randint(5, 200, (4, 7), generator=torch.Generator().manual_seed(0))
    logits = {}
    for dtype in ("float32", "bfloat16"):
        e = engine(make(architecture), dtype=dtype, rank=2, scope="linear")
        e.set_members([*Population(2).ask(1), CENTER, *Population(2, antithetic=True).ask(1)[1:]])
        with torch.no_grad():
            logits[dtype] = e.model(ids).logits.float()
    error = (logits["bfloat16"] - logits["float32"]).norm() / logits["float32"].norm()
    assert error < 0.03
