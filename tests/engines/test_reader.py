"""Given texts, read in batches of several members, have the log-probabilities that each has alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from seedtune.engines.base import GivenText, Prompt
from seedtune.errors import DataError, NotFiniteError
from seedtune.es.population import CENTER, Population
from tiny import tiny_llama
from tiny_engine import WORDS, engine


def read_prompts(e, completions=("yes", "a longer one", "no", "four", "and another")):
    return e.texts.give(e.encode(WORDS, 0), [[text] for text in completions])


def alone(e, prompt, text):
    """The reference: one text in a batch of its own, whole log-softmax."""
    with torch.no_grad():
        logits = e.model(torch.tensor([[*prompt.ids, *text.ids]]), use_cache=False).logits[0]
    log_p = logits.log_softmax(-1)[len(prompt.ids) - 1 : -1]
    return log_p[range(len(text.ids)), list(text.ids)].numpy()


def logprobs(e, prompts, rows_at_once=None, wanted=()):
    found = {}
    for out in e.read(prompts, rows_at_once, wanted):
        found.update(zip(out.rows, out.logprobs, strict=True))
    return [found[n] for n in range(len(prompts))]


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("pads", [False, True])
def test_members_in_one_batch_say_what_each_says_alone(low_rank, pads):
    e = engine(perturbation="lowrank" if low_rank else "full")
    e.ways = dataclasses.replace(e.ways, pads=pads)
    prompts, members = read_prompts(e), Population(4, antithetic=True).ask(1)
    one_by_one = []
    for member in members:
        e.set_members([member])
        one_by_one.append([alone(e, p, p.given[0]) for p in prompts])
    if low_rank:
        rows = [(m, p) for p in range(len(prompts)) for m in range(4)]
        e.set_members([members[m] for m, _ in rows])
        found = logprobs(e, [prompts[p] for _, p in rows], rows_at_once=6)
    else:
        rows = [(2, p) for p in range(len(prompts))]
        e.set_members([members[2]] * len(rows))
        found = logprobs(e, prompts, rows_at_once=2)
    for (m, p), of_row in zip(rows, found, strict=True):
        assert np.allclose(of_row[0], one_by_one[m][p], atol=2e-4)
    assert not np.allclose(one_by_one[0][1], one_by_one[1][1], atol=1e-2)  # members do differ


def test_two_texts_of_a_row_are_read_by_its_member():
    e = engine(perturbation="lowrank")
    prompts = e.texts.give(e.encode(WORDS[:2], 0), [["yes", "no, not that"], ["one", "another"]])
    members = Population(2, antithetic=True).ask(1)
    e.set_members(members)
    found = logprobs(e, prompts)
    for member, prompt, of_row in zip(members, prompts, found, strict=True):
        e.set_members([member])
        for text, read in zip(prompt.given, of_row, strict=True):
            assert np.allclose(read, alone(e, prompt, text), atol=2e-4)


def test_logits_and_hidden_states_stand_where_the_tokens_are_predicted():
    e = engine()
    prompts = read_prompts(e)
    e.set_members([CENTER] * len(prompts))
    for out in e.read(prompts, 3, ("logits", "hidden_states")):
        for n, logits, hidden, of_row in zip(out.rows, out.logits, out.hidden_states, out.logprobs, strict=True):
            ids = list(prompts[n].given[0].ids)
            assert np.allclose(logits.log_softmax(-1)[range(len(ids)), ids].numpy(), of_row[0], atol=1e-5)
            assert len(hidden) == 3
            assert torch.allclose(e.model.lm_head(hidden[-1]), logits, atol=1e-4)
    assert next(e.read(prompts)).logits is None


def test_rows_of_like_length_share_a_batch_and_batches_depend_on_the_chunk_alone():
    e = engine()
    prompts = read_prompts(e)
    batches = [out.rows for out in e.read(prompts, 2)]
    assert batches == [out.rows for out in e.read(prompts, 2)]
    sizes = [prompts[n].num_tokens for rows in batches for n in rows]
    assert sizes == sorted(sizes)
    assert max(map(len, batches)) == 2


def test_divergence_from_base_is_that_of_whole_distributions():
    e = engine(keep_base=True)
    prompts = read_prompts(e)
    assert all(not per_token.any() for per_token in e.divergence_from_base(prompts))
    base = tiny_llama()
    e.update(Population(4).ask(1), np.array([1, -1, 0.5, -0.5], dtype=np.float32), 0.05)
    for prompt, per_token in zip(prompts, e.divergence_from_base(prompts), strict=True):
        ids = torch.tensor([[*prompt.ids, *prompt.given[0].ids]])
        with torch.no_grad():
            own, other = (m(ids).logits[0, len(prompt.ids) - 1 : -1].log_softmax(-1) for m in (e.model, base))
        assert np.allclose(per_token, ((own - other) * own.exp()).sum(-1).numpy(), atol=1e-4)
        assert per_token.sum() > 0


def test_logits_that_are_no_numbers_are_an_error():
    e = engine()
    prompts = read_prompts(e)
    e.model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(NotFiniteError):
        list(e.read(prompts))


# --- tokens -----------------------------------------------------------------------------------------------------------


def given(content, completion, **options):
    e = engine(**options)
    prompt = e.texts.give(e.encode([content], 0), [[completion]])[0]
    return prompt, prompt.given[0], e.tokenizer


def test_text_is_followed_by_the_end_of_sequence():
    prompt, text, tokenizer = given("say", " yes")
    assert tokenizer.decode(prompt.ids) + tokenizer.decode(text.ids) == "say yes<|end|>"
    assert (text.content, text.text) == (" yes", " yes")


@pytest.mark.parametrize("completion", ["yes", [{"role": "assistant", "content": "yes"}]])
def test_messages_become_what_the_chat_template_writes(completion):
    prompt, text, tokenizer = given([{"role": "user", "content": "hi"}], completion)
    assert tokenizer.decode(prompt.ids) == "<|user|>hi<|end|><|assistant|>"
    assert tokenizer.decode(text.ids) == "yes<|end|>"
    assert text.text == "yes"


def test_what_a_template_writes_behind_the_end_of_a_turn_is_not_read():
    e = engine()
    template = e.tokenizer.chat_template
    try:
        e.tokenizer.chat_template = template.replace("<|end|>", "<|end|>\n")
        prompts = e.encode([[{"role": "user", "content": "hi"}]], 0)
        assert e.tokenizer.decode(e.texts.give(prompts, [["yes"]])[0].given[0].ids) == "yes<|end|>"
    finally:
        e.tokenizer.chat_template = template


def test_a_completion_beyond_the_context_is_refused():
    e = engine(model=tiny_llama(context=16))
    prompts = e.encode(["0123456789"], 0)
    e.texts.give(prompts, [["12345"]])
    with pytest.raises(DataError, match=r"row 1 has 17 tokens.*context of 16"):
        e.texts.give(prompts, [["123456"]])


def test_a_prompt_counts_its_longest_text():
    assert Prompt("", (1, 2)).num_tokens == 2
    assert Prompt("", (1, 2), (GivenText("", "", (1,)), GivenText("", "", (1, 2, 3)))).num_tokens == 5
