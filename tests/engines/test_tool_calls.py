"""Tool calls as chat templates write them: learned, parsed, and answered."""

from __future__ import annotations

import copy

import pytest

from seedtune.engines.messages import ChatTemplate
from seedtune.engines.tool_calls import MalformedCall, ToolCallFormat, ToolTurns
from seedtune.errors import DataError
from talking import ask, talking_tokenizer
from tiny import tiny_tokenizer

SCHEMA = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}
RESULT = {"role": "tool", "name": "add", "content": "3"}

HEAD = (
    "{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}{% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content or '' }}"
)
TAIL = "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
CALL = "{% for c in m.tool_calls or [] %}"
#: How families of models write calls, in words of our own: Qwen and Hermes, Llama 3.1, Mistral, arguments as text.
FORMATS = {
    "tags": (
        CALL + '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
        "</tool_call>{% endfor %}",
        'so <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        ToolCallFormat("<tool_call>", "name", "arguments"),
    ),
    "bare": (
        CALL + '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}',
        ' {"name": "add", "parameters": {"a": 1}}',
        ToolCallFormat("", "name", "parameters"),
    ),
    "list": (
        "{% if m.tool_calls %}[CALLS][" + CALL + '{"name": "{{ c.function.name }}", '
        '"arguments": {{ c.function.arguments | tojson }}, "id": "x"}{% endfor %}]{% endif %}',
        'so[CALLS][{"name": "add", "arguments": {"a": 1}}]',
        ToolCallFormat("[CALLS]", "name", "arguments", listed=True),
    ),
    "text": (
        CALL + '<call>{"tool": "{{ c.function.name }}", "input": {{ c.function.arguments | tojson | tojson }}}'
        "</call>{% endfor %}",
        'so<call>{"tool": "add", "input": "{\\"a\\": 1}"}</call>',
        ToolCallFormat("<call>", "tool", "input"),
    ),
}


def turns(template):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    return ToolTurns(tokenizer, ChatTemplate(tokenizer, {}), {0}), tokenizer


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_of_calls_is_learned_from_the_template(name):
    body, said, expected = FORMATS[name]
    found, tokenizer = turns(HEAD + body + TAIL)
    assert found._format == expected
    assert not found.is_ours
    turn = found.parse([*tokenizer(said)["input_ids"], 0], [], [SCHEMA])
    assert turn.calls == [{"name": "add", "arguments": {"a": 1}}]
    assert turn.message["content"] == ("so" if said.startswith("so") else "")
    assert not turn.malformed
    more = tokenizer.decode(found.suffix(turn, [RESULT, RESULT], [SCHEMA]))
    assert more == "<|end|><|user|>3<|end|><|user|>3<|end|><|assistant|>"
    plain = found.parse(tokenizer("no call at all")["input_ids"], [], [SCHEMA])
    assert (plain.calls, plain.message["content"], plain.malformed) == ([], "no call at all", False)


def test_several_calls_of_one_turn_are_all_made():
    found, tokenizer = turns(HEAD + FORMATS["tags"][0] + TAIL)
    one = '<tool_call>{"name": "add", "arguments": {"a": %d}}</tool_call>'
    turn = found.parse(tokenizer("first " + one % 1 + " and " + one % 2)["input_ids"], [], [])
    assert [call["arguments"]["a"] for call in turn.calls] == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>{",
        "<tool_call>nonsense</tool_call>",
        '<tool_call>{"name": 3, "arguments": {}}',
        '<tool_call>{"name": "add", "arguments": [1]}',
        '<tool_call>{"name": "add", "arguments": "{"}',
        '<tool_call>{"arguments": {}}',
        '<tool_call>["add"]',
        "<tool_call>" + "[" * 100_000,
        '<tool_call>{"name": "add", "arguments": "' + "[" * 100_000 + '"}',
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><tool_call>oops',
    ],
)
def test_calls_that_cannot_be_read_are_no_calls(text):
    with pytest.raises(MalformedCall):
        FORMATS["tags"][2].parse(text)
    if len(text) < 1000:
        found, tokenizer = turns(HEAD + FORMATS["tags"][0] + TAIL)
        turn = found.parse(tokenizer(text)["input_ids"], [], [])
        assert (turn.calls, turn.malformed, turn.message["content"]) == ([], True, text)


def test_a_tokenizer_that_parses_itself_does():
    tokenizer = talking_tokenizer()
    found = ToolTurns(tokenizer, ChatTemplate(tokenizer, {}), {0})
    assert found.parse([9, 7, 5], [1], [SCHEMA]).calls == [{"name": "add", "arguments": {"a": 9, "b": 7}}]
    assert found.parse([8, 7, 5], [1], [SCHEMA]).calls == []


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_chatml_without_tools_is_given_some():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = ToolTurns(tokenizer, ChatTemplate(tokenizer, {}), {end})
    assert found.is_ours
    assert tokenizer.chat_template == CHATML
    prompt = found.render([{"role": "system", "content": "Be brief."}, *ask("2 + 3?")], [SCHEMA])
    assert prompt.startswith("<|im_start|>system\nBe brief.\n")
    assert '"name": "add"' in prompt
    assert prompt.endswith("<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n")
    said = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
    turn = found.parse(tokenizer(said)["input_ids"], [], [SCHEMA])
    whole = found.template.render_whole([*ask("x"), turn.message], tools=[SCHEMA])
    assert whole.endswith(f"<|im_start|>assistant\n{said}<|im_end|>\n")
    more = tokenizer.decode(found.suffix(turn, [RESULT], [SCHEMA]))
    assert more == "<|im_end|>\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n"


#: As in Qwen3's template, in words of our own: the last turn alone has a thought, which may be empty.
THOUGHT = "{% if loop.last and m.role == 'assistant' %}<thought>\n\n</thought>\n{% endif %}"


def test_a_thought_that_only_the_last_turn_has_is_no_change():
    """What the model wrote itself is kept as it is, with its own thought or without one."""
    found, tokenizer = turns(HEAD.replace("{{ m.content", THOUGHT + "{{ m.content") + FORMATS["tags"][0] + TAIL)
    whole = found.template.render_whole([*ask("x"), {"role": "assistant", "content": "y"}])
    assert whole == "<|user|>x<|end|><|assistant|><thought>\n\n</thought>\ny<|end|>"
    said = '<thought>\nlet me see\n</thought>\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    turn = found.parse(tokenizer(said)["input_ids"], [], [SCHEMA])
    assert turn.calls == [{"name": "add", "arguments": {"a": 1}}]
    more = tokenizer.decode(found.suffix(turn, [RESULT], [SCHEMA]))
    assert more == "<|end|><|user|>3<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (tiny_tokenizer().chat_template, "knows no tools"),
        (HEAD + CALL + "<call {{ c.function.name }}={{ c.function.arguments.values() | list }}>{% endfor %}" + TAIL,
         "in a format of its own"),
        ("{{ messages | length }}" + HEAD + FORMATS["tags"][0] + TAIL, "changes earlier turns"),
        (HEAD + "{% if loop.last %}a{% else %}b{% endif %}" + FORMATS["tags"][0] + TAIL, "changes earlier turns"),
        (HEAD + THOUGHT.replace("{% if", "{% if not") + FORMATS["tags"][0] + TAIL, "changes earlier turns"),
        (THOUGHT.replace("loop.last and m.role == 'assistant'", "messages[-1].role == 'assistant'") + HEAD
         + FORMATS["tags"][0] + TAIL, "changes earlier turns"),
    ],
)  # fmt: skip
def test_templates_that_cannot_have_tools_are_refused(template, why):
    with pytest.raises(DataError, match=why):
        turns(template)
