"""Every causal model class of transformers: its greedy tokens are those of `generate` for each prompt alone, whichever
way they are decoded, or a ModelError says why not.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from transformers import GenerationConfig

from architectures import MODEL_TYPES, tiny_model
from seedtune.engines.base import Sampling
from seedtune.errors import ModelError
from seedtune.es.population import Population
from seedtune.evaluation.kl import divergence
from seedtune.evaluation.perplexity import perplexity
from tiny import tiny_llama
from tiny_engine import SHARED, WORDS, engine

TEXTS = [*WORDS, *SHARED, *(word[::-1] for word in WORDS)]  # some of one length
_TOKENS = 10
#: How models of each kind are decoded: by our loop, or by `generate`. What is not here is in the slow sweep.
WAYS = {
    "llama": "loop",
    "gpt2": "loop",
    "gemma3_text": "loop",  # sliding windows
    "cohere2": "loop",
    "bloom": "loop",  # positions made from the mask
    "falcon": "loop",
    "opt": "loop",
    "deepseek_v3": "loop",
    "gptj": "loop",
    "gpt_neo": "generate",  # reads the last columns of its cache
    "rwkv": "generate",  # a state that it does not name a cache; padding goes into it, and so do other rows
    "mamba": "generate",
    "jamba": "generate",  # attention beside recurrence
    "recurrent_gemma": "generate",
    "qwen3_5_text": "generate",
    "bart": "generate",  # positions counted from the cache
    "openai-gpt": "generate",  # no cache
}


def alone(model, prompt, stops):
    """What `generate` writes greedily for this prompt alone, up to a stop token."""
    ids = torch.tensor([prompt.ids])
    config = GenerationConfig(max_new_tokens=_TOKENS, pad_token_id=1)
    own, model.generation_config = model.generation_config, GenerationConfig()
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    model.generation_config = own
    new = out[0, ids.shape[1] :].tolist()
    return tuple(new[: next((n for n, token in enumerate(new) if token in stops), None)])


def check(model):
    """Whether our loop decodes it."""
    e = engine(model)
    prompts = e.encode(TEXTS, _TOKENS)
    got = e.generate(prompts, Sampling(_TOKENS, rows_at_once=4), 0)
    assert [c.ids for c in got] == [alone(model, prompt, e.texts.stops) for prompt in prompts]
    assert len({len(prompt.ids) for prompt in prompts}) < len(prompts)
    assert e.decoder or "transformers' generate" in " ".join(e.remarks)
    return e


@pytest.mark.parametrize("model_type", WAYS)
def test_a_kind_of_model_is_decoded_as_generate_does(model_type):
    e = check(tiny_model(model_type))
    assert ("loop" if e.decoder else "generate") == WAYS[model_type]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_model_is_decoded_as_generate_does_or_refused(model_type):
    try:
        model = tiny_model(model_type)
    except Exception as e:
        pytest.skip(f"no tiny configuration: {type(e).__name__}: {str(e)[:100]}")
    with contextlib.suppress(ModelError):  # which says why
        check(model)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlnet"])
def test_a_model_that_is_not_causal_is_refused(model_type):
    with pytest.raises(ModelError, match="is not a causal language model as it is loaded"):
        engine(tiny_model(model_type))


def test_a_masked_language_model_as_a_decoder_is_decoded():
    check(tiny_model("bert", is_decoder=True))


def test_a_model_that_rescales_itself_is_refused_unless_told_not_to():
    with pytest.raises(ModelError, match=r"RwkvForCausalLM changes its own weights when it runs, .*rescale_every=0"):
        engine(tiny_model("rwkv", num_hidden_layers=7))
    check(tiny_model("rwkv", num_hidden_layers=7, rescale_every=0))


@pytest.mark.parametrize("model_type", ["rwkv", "openai-gpt"])
def test_low_rank_members_of_a_model_without_a_kv_cache(model_type):
    e = engine(tiny_model(model_type), rank=1, scope="linear", sigma=0.5)
    prompts, members = e.encode(WORDS, _TOKENS), Population(4, antithetic=True).ask(1)
    e.set_members([m for m in members for _ in prompts])
    together = e.generate(prompts * len(members), Sampling(_TOKENS), 0)
    alone = []
    for member in members:
        e.set_members([member] * len(prompts))
        alone += e.generate(prompts, Sampling(_TOKENS), 0)
    assert together == alone
    assert len(set(together)) > len(prompts)


@pytest.mark.parametrize("model_type", ["rwkv", "bart"])
def test_log_probabilities_do_not_depend_on_what_shares_the_batch(model_type):
    e = engine(tiny_model(model_type), keep_base=True)
    prompts = e.encode(TEXTS, _TOKENS)
    completions = e.generate(prompts, Sampling(_TOKENS, temperature=1.0), 0)
    together = e.logprobs(prompts, completions, base=False)
    for prompt, completion, found in zip(prompts, completions, together, strict=True):
        (own,) = e.logprobs([prompt], [completion], base=False)
        assert found == pytest.approx(own, abs=1e-4)
    assert divergence(e, prompts, completions).mean == 0
    assert perplexity(e) > 1


def test_batches_of_generate_draw_numbers_of_their_own():
    e = engine(tiny_model("rwkv"))
    (prompt,) = e.encode(["hello"], _TOKENS)
    first, second = e.generate([prompt] * 2, Sampling(_TOKENS, temperature=1.0, rows_at_once=1), 0)
    assert first != second


def test_a_model_that_generate_fails_with_is_refused(monkeypatch):
    model = tiny_llama()

    def fails(**arguments):
        raise ValueError("no such luck")

    monkeypatch.setattr(model, "generate", fails)
    with pytest.raises(ModelError, match=r"generate fails with this model \(LlamaForCausalLM\): ValueError: no such"):
        engine(model)
