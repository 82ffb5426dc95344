"""Tool calls as chat templates write them: learned, parsed, and answered."""

from __future__ import annotations

import copy

import pytest

from seedtune.engines.call_formats import (
    MalformedCall,
    NamedCallFormat,
    PythonCallFormat,
    TaggedCallFormat,
    ToolCallFormat,
)
from seedtune.engines.messages import ChatTemplate
from seedtune.engines.tool_calls import ToolTurns
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
         "in a format that is not known"),
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


# --- templates that TRL knows -----------------------------------------------------------------------------------------

MARKS = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|start|>", "<|call|>",
         "<|end|>", "<|message|>", "<|channel|>", "<turn|>", "<|turn>", "<|tool_response>", "<|tool_call_start|>",
         "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom|>", "<|eot|>")  # fmt: skip
#: Tokens that end a turn, by what a template is called; of the others ChatML's.
STOPS = {
    "gemma4": ("<turn|>", "<|tool_response>"),
    "diffusion": ("<turn|>", "<|tool_response>"),
    "glm4": ("<|user|>", "<|observation|>"),
    "gptoss": ("<|call|>", "<|end|>"),
    "llama3": ("<|eot_id|>",),
    "muse": ("<|eot|>",),
}
PARAMETERS = {
    "a": {"type": "integer", "description": "a number"},
    "text": {"type": "string", "description": "a text"},
    "many": {"type": "array", "items": {"type": "number"}, "description": "numbers"},
    "flag": {"type": "boolean", "description": "yes or no"},
}
TYPED = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": PARAMETERS, "required": ["a"]},
    },
}
GIVEN = {"a": 7, "text": "75001, and so on: on", "many": [1, 2.5, -3], "flag": True}


def call(arguments):
    return {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": arguments}}


def known_templates():
    utils = pytest.importorskip("trl.chat_template_utils")
    files = sorted(utils._CHAT_TEMPLATES_DIR.glob("*.jinja"))
    for file in files:
        if "_training" in file.name:
            continue
        tokenizer = copy.deepcopy(tiny_tokenizer())
        tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
        tokenizer.chat_template = file.read_text()
        try:
            utils.add_response_schema(tokenizer)
        except ValueError:
            continue
        schema, tokenizer.response_template = tokenizer.response_template, None
        if utils.supports_tool_calling(tokenizer):
            yield file.stem, tokenizer, schema


def test_every_template_that_trl_parses_is_read_without_it():
    """Learned from the template alone: the calls that it writes, typed by the tool's schema, and what stands before
    them; what TRL's own schema says of them, by transformers' parser; results that are read behind the turn.
    """
    seen = []
    for name, tokenizer, schema in known_templates():
        names = next((marks for begin, marks in STOPS.items() if name.startswith(begin)), ("<|im_end|>",))
        stops = {tokenizer.convert_tokens_to_ids(mark) for mark in names}
        found = ToolTurns(tokenizer, ChatTemplate(tokenizer, {}), stops)
        assert found._format is not None
        asks = ask("7?")
        several = [call(GIVEN)] if name.startswith(("llama", "gptoss")) else [call(GIVEN), call({"a": -1})]
        turn = {"role": "assistant", "content": "", "tool_calls": several}
        prompt = found.render(asks, [TYPED])
        whole = found.template.render_whole([*asks, turn], tools=[TYPED])
        said = whole.removeprefix(prompt.removesuffix("<think>\n"))
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        parsed = found.parse(ids, [], [TYPED])
        assert [c["arguments"] for c in parsed.calls] == [c["function"]["arguments"] for c in several], (name, said)
        assert {c["name"] for c in parsed.calls} == {"add"}
        assert not parsed.malformed
        if name.startswith("lfm2"):  # TRL's pattern loses a boolean, as it says itself
            assert tokenizer.parse_response(said, schema, prefix=prompt, tools=[TYPED])["tool_calls"]
        else:
            theirs = tokenizer.parse_response(said, schema, prefix=prompt, tools=[TYPED])
            assert [c["function"] for c in theirs["tool_calls"]] == parsed.calls, name
        results = [{**RESULT, "tool_call_id": "abcdefghi"} for _ in several]
        more = tokenizer.decode(found.suffix(parsed, results, [TYPED]))
        assert more.count("3") >= len(several)
        assert "seedtune" not in more
        assert "question" not in more
        answered = found.render([*asks, turn, *results], [TYPED])
        assert answered.endswith(more), name
        seen.append(name)
    assert len(seen) >= 20
    assert {"gptoss", "glm4moe", "gemma4", "qwen3_5_think", "nemotron_3_nano", "lfm2_2_5"} <= set(seen)


def test_a_tokenizer_with_trls_schema_parses_by_it():
    for name, tokenizer, schema in known_templates():
        if name != "qwen3_5_think":
            continue
        tokenizer.response_template = schema
        found = ToolTurns(tokenizer, ChatTemplate(tokenizer, {}), {tokenizer.convert_tokens_to_ids("<|im_end|>")})
        prompt = found.render(ask("x"), [TYPED])
        one = "<tool_call>\n<function=add>\n<parameter=a>\n7\n</parameter>\n</function>\n</tool_call>"
        said = "let me see\n</think>\n\nso\n" + one
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (said, prompt)]
        turn = found.parse(*ids, [TYPED])
        assert turn.calls == [{"name": "add", "arguments": {"a": 7}}]
        assert turn.message["content"].strip() == "so"
        assert turn.message["reasoning_content"].strip() == "let me see"


TAGS = TaggedCallFormat("<tool_call>\n<function=", ">", "<parameter=", ">", "</parameter>", "</function>")
PYTHON = PythonCallFormat("<|tool_call_start|>", "<|tool_call_end|>")
GEMMA = NamedCallFormat("<|tool_call>call:", '<|"|>')
NAMED = NamedCallFormat("to=functions.")


@pytest.mark.parametrize(
    ("form", "text", "arguments"),
    [
        (TAGS, "<tool_call><function=add><parameter=a>7</parameter></function></tool_call>", {"a": 7}),
        (TAGS, "<tool_call>\n<function=add>\n</function>\n</tool_call>", {}),
        (TAGS, "<tool_call><function=add><parameter=text>7</parameter></function>", {"text": "7"}),
        (TAGS, "<tool_call><function=add><parameter=other>7 or 8</parameter></function>", {"other": "7 or 8"}),
        (TAGS, "<tool_call><function=add><parameter=text></function> x</parameter></function>",
         {"text": "</function> x"}),
        (PYTHON, "<|tool_call_start|>[add(a=-7, flag=False, x={'k': [true, None]})]<|tool_call_end|>",
         {"a": -7, "flag": False, "x": {"k": [True, None]}}),
        (GEMMA, '<|tool_call>call:add{a:7,text:<|"|>a "b": {c:d}<|"|>,x:{y:[true]}}<tool_call|>',
         {"a": 7, "text": 'a "b": {c:d}', "x": {"y": [True]}}),
        (NAMED, 'to=functions.add <|constrain|>json<|message|>{"a": 7}<|call|>', {"a": 7}),
    ],
)  # fmt: skip
def test_calls_in_other_formats(form, text, arguments):
    content, calls = form.parse("so " + text, [TYPED])
    assert content == "so"
    assert [c["function"] for c in calls] == [{"name": "add", "arguments": arguments}]
    assert form.parse("no call", [TYPED]) == ("no call", [])


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (TAGS, "<tool_call><function="),
        (TAGS, "<tool_call><function=add"),
        (TAGS, "<tool_call><function=add><parameter=a>7"),
        (TAGS, "<tool_call><function=add><parameter=a>7</parameter>"),
        (TAGS, "<tool_call><function=add>" + "<parameter=" * 100_000),
        (PYTHON, "<|tool_call_start|>[add(a=7"),
        (PYTHON, "<|tool_call_start|>[__import__('os').getcwd()]"),
        (PYTHON, "<|tool_call_start|>[add(7)]"),
        (PYTHON, "<|tool_call_start|>[add(a=f(1))]"),
        (PYTHON, "<|tool_call_start|>[add(a=1+2j)]"),
        (PYTHON, "<|tool_call_start|>[add(a=9**9**9)]"),
        (PYTHON, "<|tool_call_start|>[add(a=" + "-" * 19_000 + "1)]"),
        (PYTHON, "<|tool_call_start|>" + "[" * 19_000),
        (PYTHON, "<|tool_call_start|>" + "[" * 1_000_000),
        (GEMMA, "<|tool_call>call:add{a:"),
        (GEMMA, "<|tool_call>call:{a:7}"),
        (GEMMA, "<|tool_call>call:add{a:" + "[" * 100_000),
        (NAMED, "to=functions.add" + " " * 200 + "{}"),
        (NAMED, "to=functions.add{"),
    ],
)
def test_calls_in_other_formats_that_cannot_be_read(form, text):
    with pytest.raises(MalformedCall):
        form.parse(text, [TYPED])
