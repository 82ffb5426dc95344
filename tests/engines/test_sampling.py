"""Sampling settings and stop strings, against transformers' own: members that share a batch, and full-rank ones."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList, MambaConfig

from seedtune.engines.base import Sampling
from seedtune.engines.hf.sampler import Sampler
from seedtune.engines.stop_strings import StopStrings
from seedtune.errors import ConfigError
from seedtune.es.population import Population
from tiny import tiny_llama, tiny_tokenizer
from tiny_engine import SHARED, WORDS, engine

LENGTH = 24


def theirs(model, prompt, tokenizer=None, length=LENGTH, **settings):
    """What `generate` of transformers writes for one prompt alone."""
    config = GenerationConfig(eos_token_id=0, pad_token_id=1, max_new_tokens=length, **settings)
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=ids * 0 + 1, generation_config=config, tokenizer=tokenizer)
    return tuple(out[0, len(prompt.ids) :].tolist())


def perturbed(kind):
    """An engine, and two members of it that differ."""
    e = engine(rank=2, scope="linear") if kind == "lowrank" else engine()
    return e, Population(2, antithetic=True).ask(1)


def member_model(e, member):
    """A model whose weights are those of a full-rank member."""
    e.set_members([member])
    e.center.select_rows(torch.tensor([0]))
    model = tiny_llama()
    model.load_state_dict(e.model.state_dict())
    return model


@pytest.mark.parametrize("penalty", [1.4, 0.7])
@pytest.mark.parametrize("rows_at_once", [2, 20])
def test_a_repetition_penalty_is_transformers(penalty, rows_at_once):
    e = engine()
    prompts = e.encode([*WORDS, *SHARED], LENGTH)
    got = e.generate(prompts, Sampling(LENGTH, repetition_penalty=penalty, rows_at_once=rows_at_once), 0)
    assert [c.chosen for c in got] == [theirs(e.model, p, repetition_penalty=penalty) for p in prompts]
    assert [c.ids for c in got] != [c.ids for c in e.generate(prompts, Sampling(LENGTH), 0)]


def test_members_of_both_kinds_are_penalized_as_alone():
    settings = Sampling(LENGTH, repetition_penalty=1.4)
    e, members = perturbed("full")
    prompts = e.encode(WORDS, LENGTH)
    for member in members:
        e.set_members([member] * len(prompts))
        got = e.generate(prompts, settings, 0)
        assert [c.chosen for c in got] == [theirs(e.model, p, repetition_penalty=1.4) for p in prompts]
    e, members = perturbed("lowrank")
    e.set_members([m for m in members for _ in prompts])
    both = e.generate(prompts * 2, settings, 0)
    alone = []
    for member in members:
        for prompt in prompts:
            e.set_members([member])
            alone += e.generate([prompt], settings, 0)
    assert [c.ids for c in both] == [c.ids for c in alone]
    assert [c.ids for c in both[: len(prompts)]] != [c.ids for c in both[len(prompts) :]]


#: transformers' processors, in its order.
CASES = [
    {"min_p": 0.05},
    {"min_p": 0.3, "temperature": 1.7},
    {"repetition_penalty": 1.3},
    {"min_p": 0.02, "repetition_penalty": 0.8, "temperature": 0.6, "top_k": 40, "top_p": 0.95},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_chances_are_those_of_transformers_processors(settings):
    """The tokens that many uniform numbers choose, against the distribution of transformers' own processors."""
    num = 4000
    torch.manual_seed(0)
    logits, context = 3 * torch.randn(1, 261), torch.tensor([[5, 9, 9, 200]])
    config = GenerationConfig(do_sample=True, top_k=0, eos_token_id=0, pad_token_id=1)
    config.update(**settings)
    processors = tiny_llama()._get_logits_processor(config, input_ids_seq_length=4, model_kwargs={})
    assert isinstance(processors, LogitsProcessorList)
    expected = processors(context, logits.clone()).softmax(-1)[0]
    sampler = Sampler(Sampling(1, **{"temperature": 1.0, **settings}), num, 3, torch.device("cpu"))
    drawn = sampler(
        logits.expand(num, -1), torch.arange(num), torch.zeros(num, dtype=torch.long), context.expand(num, -1)
    )
    counts = torch.bincount(drawn, minlength=261) / num
    assert not counts[expected == 0].any()
    assert (counts - expected).abs().max() < 0.03


@pytest.mark.parametrize("kind", ["lowrank", "full"])
def test_what_a_member_samples_does_not_depend_on_the_batch(kind):
    e, members = perturbed(kind)
    prompts = e.encode(WORDS, 12)
    who = [m for m in members for _ in prompts] if kind == "lowrank" else [members[0]] * len(prompts)
    asked = prompts * (len(who) // len(prompts))
    answers = []
    for rows in (1, 3, len(asked)):
        e.set_members(who)
        how = Sampling(12, temperature=1.0, min_p=0.02, repetition_penalty=1.3, rows_at_once=rows)
        answers.append([c.ids for c in e.generate(asked, how, 3)])
    assert answers[0] == answers[1] == answers[2]


def mamba():
    config = MambaConfig(vocab_size=261, hidden_size=32, state_size=8, num_hidden_layers=2, initializer_range=0.5)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


@pytest.mark.parametrize("model", [tiny_llama, mamba])
def test_a_row_with_a_seed_draws_the_same_wherever_it_stands(model):
    e = engine(model())
    assert (e.decoder is None) == (model is mamba)
    prompts = e.encode(WORDS, 12)
    how = Sampling(12, temperature=0.8, min_p=0.02)
    seeds = [2**62 + n for n in range(len(prompts))]
    first = [c.ids for c in e.generate(prompts, how, seeds)]
    again = e.generate([*prompts[::-1], prompts[0]], replace(how, rows_at_once=2), [*seeds[::-1], 5])
    assert [c.ids for c in again[: len(prompts)]] == first[::-1]
    assert again[-1].ids != first[0]
    with_unscored = e.generate(prompts, replace(how, first_sampled_row=3), seeds)
    assert [c.ids for c in with_unscored[:3]] == first[:3]
    assert [c.ids for c in with_unscored[3:]] == [
        c.ids for c in e.generate(prompts, Sampling(12, temperature=1.0), seeds)[3:]
    ]


def test_samples_for_a_distance_know_nothing_of_it():
    e = engine()
    prompts = e.encode(WORDS, 12)
    restricted = Sampling(12, repetition_penalty=2.0, min_p=0.5, first_sampled_row=5)
    both = e.generate(prompts * 2, restricted, 7)
    assert both[:5] == e.generate(prompts, Sampling(12, repetition_penalty=2.0), 0)
    assert both[5:] == e.generate(prompts * 2, Sampling(12, temperature=1.0), 7)[5:]
    assert not restricted.is_models_own
    assert Sampling(12, temperature=0.7).is_models_own


# --- stop strings -----------------------------------------------------------------------------------------------------


def written(e, prompts):
    """What the model writes, and pieces of it to stop at."""
    texts = [c.text for c in e.generate(prompts, Sampling(LENGTH), 0)]
    return [found[-1] for text in texts if (found := re.findall("[!-~]{2}", text[3:]))]


@pytest.mark.parametrize("rows_at_once", [2, 20])
@pytest.mark.parametrize("kind", ["lowrank", "full"])
def test_stop_strings_are_transformers(kind, rows_at_once):
    prompts = engine().encode([*WORDS, *SHARED], LENGTH)
    strings = written(engine(), prompts)
    options = {"rank": 2, "scope": "linear"} if kind == "lowrank" else {}
    e = engine(stop_strings=strings, **options)
    got = e.generate(prompts, Sampling(LENGTH, rows_at_once=rows_at_once, logprobs=True), 0)
    expected = [theirs(tiny_llama(), p, tiny_tokenizer(), stop_strings=strings) for p in prompts]
    assert [c.chosen for c in got] == expected
    ends = [e.texts.stop_strings.first_end(p.ids, c.chosen) for p, c in zip(prompts, got, strict=True)]
    assert [c.truncated for c in got] == [end is None and c.stop is None for c, end in zip(got, ends, strict=True)]
    assert all(len(c.logprobs) == len(c.chosen) for c in got)
    assert any(end is not None and end < LENGTH for end in ends)


def test_a_row_that_a_stop_string_ended_leaves_the_batch(monkeypatch):
    prompts = engine().encode(WORDS, LENGTH)
    e = engine(stop_strings=written(engine(), prompts))
    steps = []
    forward = e.decoder.forward
    monkeypatch.setattr(
        e.decoder, "forward", lambda cache, ids, *rest: steps.append(len(ids)) or forward(cache, ids, *rest)
    )
    got = e.generate(prompts, Sampling(LENGTH), 0)
    assert sum(len(c.chosen) for c in got) == sum(steps)  # one row, one token, until it ends


def test_a_stop_string_may_begin_in_the_prompt_and_end_within_a_token():
    tokenizer = tiny_tokenizer()
    strings = StopStrings(tokenizer, ["ab", "</answer>"])
    a, b, c = (tokenizer(letter)["input_ids"][0] for letter in "abc")
    assert strings.first_end([c, a], [b, c]) == 1
    assert strings.first_end([a, b], [c, c]) is None
    assert strings.first_end([], [a]) is None
    assert strings.first_end([], [c, c, a, b, a, b]) == 4
    ids = tokenizer("so</answer> and more")["input_ids"]
    assert tokenizer.decode(ids[: strings.first_end([], ids)]) == "so</answer>"


def test_stop_strings_through_transformers_own_loop():
    model = mamba()
    plain = engine(model)
    assert plain.decoder is None
    prompts = plain.encode(WORDS, LENGTH)
    strings = [plain.tokenizer.decode(c.ids[3:5]) for c in plain.generate(prompts, Sampling(LENGTH), 0)]
    e = engine(model, stop_strings=strings)
    got = e.generate(prompts, Sampling(LENGTH), 0)
    for prompt, completion in zip(prompts, got, strict=True):
        assert completion.chosen == theirs(model, prompt, tiny_tokenizer(), stop_strings=strings)
    assert not all(c.truncated for c in got)
    penalized = e.generate(prompts, Sampling(LENGTH, repetition_penalty=1.5), 0)
    for prompt, completion in zip(prompts, penalized, strict=True):
        expected = theirs(model, prompt, tiny_tokenizer(), stop_strings=strings, repetition_penalty=1.5)
        assert completion.chosen == expected


def test_a_stop_string_that_no_token_ends_is_refused():
    with pytest.raises(ConfigError, match="stop_strings"):
        StopStrings(_ascii_only(), ["é"])


def _ascii_only():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"a": 0, "abcdef": 1, "[UNK]": 2}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")
