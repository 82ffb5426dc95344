"""From prompts to tokens and back: conversations as users have them, tokens that end a completion, and those that the
model does not have.
"""

from __future__ import annotations

import copy

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from runs import head_of, letters, trainer
from seedtune.engines.base import Sampling
from seedtune.engines.tokenization import Texts, tokenizer_of
from seedtune.errors import ConfigError, DataError
from tiny import CHAT_TEMPLATE, SPECIAL, tiny_llama, tiny_tokenizer

END, PAD, USER, ASSISTANT, SYSTEM = range(len(SPECIAL))
#: A template that renders parts only, as some of multimodal models do.
PARTS_ONLY = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(**attributes):
    made = copy.deepcopy(tiny_tokenizer())
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def texts(model=None, kwargs=None, **attributes):
    return Texts(tokenizer(**attributes), model or tiny_llama(), kwargs)


def rendered(messages, **options):
    made = texts(**options)
    return made.tokenizer.decode(made.encode([messages], 4)[0].ids)


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


# --- conversations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("hi")], "<|user|>hi<|end|><|assistant|>"),
        ([user("hi"), assistant("So")], "<|user|>hi<|end|><|assistant|>So"),
        ([user("hi"), assistant([{"type": "text", "text": "So"}])], "<|user|>hi<|end|><|assistant|>So"),
        ([user("hi"), assistant("")], "<|user|>hi<|end|><|assistant|>"),
        (
            [user("hi"), assistant("yes"), user("ok")],
            "<|user|>hi<|end|><|assistant|>yes<|end|><|user|>ok<|end|><|assistant|>",
        ),
        ([user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], "<|user|>ab<|end|><|assistant|>"),
        ([user(["a", "b"])], "<|user|>ab<|end|><|assistant|>"),
        ([user([{"type": "text", "text": "a", "image": None}])], "<|user|>a<|end|><|assistant|>"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PARTS_ONLY], ids=["text", "parts"])
def test_a_conversation_is_rendered_as_the_template_reads_it(messages, expected, template):
    assert rendered(messages, chat_template=template) == expected


def test_the_users_own_arguments_of_the_template_come_first():
    messages = [user("hi"), assistant("So")]
    assert rendered(messages, kwargs={"add_generation_prompt": True}).endswith("So<|end|><|assistant|>")
    assert rendered(messages, kwargs={"add_generation_prompt": False}).endswith("So<|end|>")


def test_an_assistant_that_calls_a_tool_needs_no_content():
    template = CHAT_TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] or m['tool_calls'][0]['name'] }}")
    messages = [user("hi"), assistant(None, tool_calls=[{"name": "add"}]), {"role": "tool", "content": "3"}]
    assert rendered(messages, chat_template=template).startswith("<|user|>hi<|end|><|assistant|>add<|end|><|tool|>3")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([user(None)], r"prompt 1: message 1 \(user\) has no content"),
        ([user("hi"), assistant(None)], r"message 2 \(assistant\) has no content"),
        ([user([{"type": "image", "image": "x.png"}])], "part of type 'image', and only text"),
        ([user([{"type": "text", "text": None}])], "part of type 'text', and only text"),
        ([user(3)], "content of type int"),
        ([user({"type": "text", "text": "a"})], "content of type dict"),
        ([], "a conversation is a list of messages"),
        (None, "a conversation is a list of messages"),
    ],
)
def test_content_that_is_no_text_is_refused(messages, says):
    with pytest.raises(DataError, match=says):
        texts().encode([messages], 4)


@pytest.mark.parametrize("prompt", ["a\ud83d b", [user("a\ud83d b")]])
def test_half_of_a_surrogate_pair_is_named(prompt):
    with pytest.raises(DataError, match=r"prompt 2: half of a surrogate pair \('\\ud83d'\)"):
        texts().encode(["fine", prompt], 4)


# --- tokens that end a completion -------------------------------------------------------------------------------------


def model_that_ends_at(ids):
    model = tiny_llama()
    model.generation_config.eos_token_id = ids
    return model


@pytest.mark.parametrize(
    ("of_model", "of_tokenizer", "template", "stops"),
    [
        (END, "<|end|>", CHAT_TEMPLATE, {END}),
        ([SYSTEM, PAD], "<|end|>", CHAT_TEMPLATE, {SYSTEM, PAD, END}),
        (SYSTEM, "<|user|>", CHAT_TEMPLATE, {SYSTEM, USER, END}),  # <|end|>: the template's end of turn
        (SYSTEM, "<|user|>", None, {SYSTEM, USER}),
        (SYSTEM, None, CHAT_TEMPLATE.replace("<|end|>", "\n"), {SYSTEM}),
        (None, "<|user|>", None, {USER}),
        ([SYSTEM, 5000], None, None, {SYSTEM}),
    ],
)
def test_completions_end_at_what_model_tokenizer_or_template_name(of_model, of_tokenizer, template, stops):
    made = texts(model_that_ends_at(of_model), eos_token=of_tokenizer, chat_template=template)
    assert made.stops == stops
    assert made.completion([7, max(stops), 9]).stop == max(stops)
    own = of_model if isinstance(of_model, list) else [of_model]
    assert any("ends completions at" in remark for remark in made.remarks) == (stops != {n for n in own if n != 5000})


def test_a_note_says_where_completions_end():
    made = texts(model_that_ends_at(SYSTEM), eos_token="<|user|>")
    assert made.remarks == [
        "ends completions at <|system|> (the generation configuration), <|user|> (the tokenizer), "
        "<|end|> (the chat template)"
    ]
    nothing = texts(model_that_ends_at(None), eos_token=None, chat_template=None)
    assert "all are cut off" in nothing.remarks[0]


def test_the_run_says_where_completions_end(tmp_path):
    model = model_that_ends_at(SYSTEM)
    facts = head_of(trainer(tmp_path, model=model))
    assert [text for name, text in facts if name == "engine" and text.startswith("ends completions at <|system|>")]


def test_special_tokens_are_kept_for_rewards_where_asked(tmp_path):
    ids = [*tiny_tokenizer()("a")["input_ids"], USER, *tiny_tokenizer()("b")["input_ids"], END]
    assert texts().completion(ids).text == "ab"
    kept = Texts(tiny_tokenizer(), tiny_llama(), skip_special_tokens=False)
    assert kept.completion(ids).text == "a<|user|>b"
    t = trainer(tmp_path, skip_special_tokens=False)
    assert t.engine.texts.completion(ids).text == "a<|user|>b"


# --- tokens that the model does not have ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("single", "text", "ids"),
    [
        ("<|system|> $A", "ab", [SYSTEM, "a", "b"]),
        ("<|system|> $A", "<|system|>ab", [SYSTEM, "a", "b"]),  # as a chat template writes it
        ("<|system|> $A <|end|>", "ab", [SYSTEM, "a", "b"]),  # which ends a text that goes on
        ("$A <|end|>", "ab<|end|>", ["a", "b", END]),
        ("$A", "<|system|><|system|>", [SYSTEM, SYSTEM]),
        ("$A", "ab", ["a", "b"]),
    ],
)
def test_special_tokens_that_a_tokenizer_adds_stand_where_a_text_begins_and_once(single, text, ids):
    made = tokenizer(bos_token="<|system|>")
    special = [(name, n) for n, name in enumerate(SPECIAL)]
    made._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    own = [n if isinstance(n, int) else made.convert_tokens_to_ids(n) for n in ids]
    assert list(Texts(made, tiny_llama()).encode([text], 4)[0].ids) == own


def larger_tokenizer():
    made = tokenizer()
    made.add_special_tokens({"pad_token": "<|more|>"})
    return made


def test_a_pad_token_beyond_the_embedding_is_replaced(tmp_path):
    t = trainer(tmp_path, processing_class=larger_tokenizer())
    assert any("pads with token 0" in remark for remark in t.engine.remarks)
    few, many = t.engine.generate(t.engine.encode(["a", "a longer one"], 8), Sampling(8), 0)
    assert [few] == t.engine.generate(t.engine.encode(["a"], 8), Sampling(8), 0)
    assert many.ids


def test_a_prompt_token_beyond_the_embedding_is_named():
    made = Texts(larger_tokenizer(), tiny_llama())
    with pytest.raises(DataError, match=r"prompt 2: token 261 \('<\|more\|>'\) is not among the 261"):
        made.encode(["a", "b<|more|>"], 4)


def test_a_model_may_write_tokens_that_the_tokenizer_lacks():
    made = texts()
    made.num_embeddings = 400
    assert made.completion([*made.tokenizer("ab")["input_ids"], 300]).text == "ab"

    class Slow(type(made.tokenizer)):  # as sentencepiece's
        def decode(self, ids, **kwargs):
            if max(ids, default=0) > 261:
                raise IndexError("piece id is out of range.")
            return super().decode(ids, **kwargs)

    made.tokenizer.__class__ = Slow
    assert made.completion([*made.tokenizer("ab")["input_ids"], 300]).text == "ab"


class Processor:
    """As of a multimodal model."""

    def __init__(self, inner, chat_template=None):
        self.tokenizer, self.chat_template = inner, chat_template


def test_a_processor_stands_for_its_tokenizer(tmp_path):
    t = trainer(tmp_path, processing_class=Processor(tokenizer(chat_template=None), CHAT_TEMPLATE))
    assert isinstance(t.processing_class, PreTrainedTokenizerBase)
    assert t.processing_class.chat_template == CHAT_TEMPLATE
    with pytest.raises(ConfigError, match="processing_class is a tokenizer"):
        tokenizer_of(letters)
