"""How models write tool calls: as JSON, as JSON behind the tool's name, between tags, or as a call in Python.

Which of them, and with which marks, is learned from a call that the chat template writes. All are read in time that
grows with the text, and nothing is evaluated.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .base import Schemas

#: Stand where a template writes a call's name, names of its arguments, and their values.
NAME, ARGUMENTS = "seedtune_tool", {"seedtune_argument": "seedtune_value", "seedtune_other": "seedtune_last"}
(_ARGUMENT, VALUE), (_OTHER, _LAST) = ARGUMENTS.items()
#: Behind a tool's name, so many characters may stand before its arguments.
_LONGEST_GAP = 100
#: Of a call in Python, in characters: Python's own parser reads it.
_LONGEST_CALL = 20_000
_WORD = re.compile(r"[\w.-]+")
#: A key without quotes.
_BARE_KEY = re.compile(r"([{,]\s*)([A-Za-z_][\w.-]*)(\s*:)")


class MalformedCall(ValueError):
    """A call begins and cannot be read."""


class CallFormat(Protocol):
    """How calls are written."""

    def parse(self, text: str, tools: Schemas = ()) -> tuple[str, list[dict[str, Any]]]:
        """What stands before the calls, and the calls, of tools with these schemas. Raises MalformedCall."""


@dataclass(frozen=True)
class ToolCallFormat:
    """How calls are written: JSON behind `begin` (which may be empty), with the call's name and arguments under these
    keys; `listed`: as a list of calls. JSON says itself where it ends.
    """

    begin: str
    name_key: str
    arguments_key: str
    listed: bool = False

    def parse(self, text: str, tools: Schemas = ()) -> tuple[str, list[dict[str, Any]]]:
        """As `CallFormat.parse`."""
        if self.begin:
            content, *pieces = text.split(self.begin)
        else:
            content, pieces = ("", [text]) if text.lstrip().startswith("[" if self.listed else "{") else (text, [])
        calls = [call for piece in pieces for call in self._read(piece)]
        return content.strip() if calls else text, calls

    def _read(self, piece: str) -> list[dict[str, Any]]:
        try:
            found, _ = json.JSONDecoder().raw_decode(piece.lstrip())
        except (ValueError, RecursionError) as e:
            raise MalformedCall(str(e)) from None
        found = found if isinstance(found, list) else [found]
        return [self._call(each) for each in found]

    def _call(self, found: Any) -> dict[str, Any]:
        """As messages have it."""
        if not isinstance(found, Mapping) or not isinstance(name := found.get(self.name_key), str):
            raise MalformedCall("a call names no tool")
        arguments = found.get(self.arguments_key, {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError) as e:
                raise MalformedCall(str(e)) from None
        if not isinstance(arguments, Mapping):
            raise MalformedCall("the arguments are no mapping")
        return _call(name, dict(arguments))


@dataclass(frozen=True)
class NamedCallFormat:
    """`begin`, the tool's name, and its arguments as JSON (gpt-oss); with a `quote` of their own around texts, and keys
    without quotes (Gemma 4).
    """

    begin: str
    quote: str = ""

    def parse(self, text: str, tools: Schemas = ()) -> tuple[str, list[dict[str, Any]]]:
        """As `CallFormat.parse`."""
        content, *pieces = text.split(self.begin)
        calls = [self._read(piece) for piece in pieces]
        return content.strip() if calls else text, calls

    def _read(self, piece: str) -> dict[str, Any]:
        name = _WORD.match(piece)
        start = piece.find("{", name.end(), name.end() + _LONGEST_GAP) if name else -1
        if name is None or start < 0:
            raise MalformedCall("a call has no name, or no arguments")
        try:
            found, _ = json.JSONDecoder().raw_decode(self._as_json(piece[start:]))
        except (ValueError, RecursionError) as e:
            raise MalformedCall(str(e)) from None
        return _call(name[0], found)

    def _as_json(self, text: str) -> str:
        if not self.quote:
            return text
        parts = text.split(self.quote)
        quoted = (json.dumps(part) if n % 2 else _BARE_KEY.sub(r'\1"\2"\3', part) for n, part in enumerate(parts))
        return "".join(quoted)


@dataclass(frozen=True)
class TaggedCallFormat:
    """A name and arguments between tags (Qwen3.5, GLM-4.5, Nemotron 3). `begin` stands before the name, `name_end`
    behind it (empty: a space); `key` before an argument's name, `value` between that and its value, `value_end` behind
    it; `end` behind all of them. Spaces around marks do not count. Values are read as JSON, unless the tool's schema
    says that they are text; what is no JSON is text.
    """

    begin: str
    name_end: str
    key: str
    value: str
    value_end: str
    end: str

    def parse(self, text: str, tools: Schemas = ()) -> tuple[str, list[dict[str, Any]]]:
        """As `CallFormat.parse`."""
        content, *pieces = re.split(_spaced(self.begin), text)
        calls = [self._read(piece, tools) for piece in pieces]
        return content.strip() if calls else text, calls

    def _read(self, piece: str, tools: Schemas) -> dict[str, Any]:
        name = _WORD.match(piece)
        if name is None or not piece.startswith(self.name_end, name.end()):
            raise MalformedCall("a call has no name")
        kinds, found, place = _kinds(name[0], tools), dict[str, Any](), name.end()
        value, value_end = re.compile(_spaced(self.value)), re.compile(_spaced(self.value_end))
        end = piece.find(self.end, place)
        while (key := piece.find(self.key, place)) >= 0 and key < end:
            key += len(self.key)
            opened = value.search(piece, key)
            closed = opened and value_end.search(piece, opened.end())
            if not opened or not closed:
                raise MalformedCall("an argument has no value")
            argument = piece[key : opened.start()].strip()
            found[argument] = _value(piece[opened.end() : closed.start()].strip(), kinds.get(argument))
            place = closed.end()
            end = piece.find(self.end, place)  # one within a value ends nothing
        if end < 0:
            raise MalformedCall("a call has no end")
        return _call(name[0], found)


@dataclass(frozen=True)
class PythonCallFormat:
    """Calls as Python writes them, as a list between `begin` and `end` (LFM2.5). Values are literals, of Python or of
    JSON.
    """

    begin: str
    end: str

    def parse(self, text: str, tools: Schemas = ()) -> tuple[str, list[dict[str, Any]]]:
        """As `CallFormat.parse`."""
        content, *pieces = text.split(self.begin)
        calls = [call for piece in pieces for call in self._read(piece.partition(self.end)[0])]
        return content.strip() if calls else text, calls

    def _read(self, piece: str) -> list[dict[str, Any]]:
        if len(piece) > _LONGEST_CALL:
            raise MalformedCall("a call is too long")
        try:
            found = ast.parse(piece.strip(), mode="eval").body
            return [self._call(node) for node in (found.elts if isinstance(found, ast.List) else [found])]
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            raise MalformedCall(str(e)) from None

    @staticmethod
    def _call(node: ast.expr) -> dict[str, Any]:
        if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name):
            raise MalformedCall("no call with names for its arguments")
        return _call(node.func.id, {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords})


_NAMES = {"true": True, "false": False, "null": None}


def _literal(node: ast.expr) -> Any:
    """The value of a literal. Raises ValueError, also for what is none."""
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(each) for each in node.elts]
    if isinstance(node, ast.Dict):
        return {str(_literal(k)): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    found = ast.literal_eval(node)
    if not isinstance(found, str | int | float | None):
        raise MalformedCall("a value is no literal that JSON has")
    return found


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """As messages have it."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _spaced(mark: str) -> str:
    """A pattern for a mark, with any space between its parts."""
    return r"\s*".join(map(re.escape, mark.split()))


def _kinds(name: str, tools: Schemas) -> dict[str, Any]:
    """What a tool's schema says of each of its arguments: its type."""
    functions = [tool.get("function", tool) for tool in tools]
    schema: Mapping[str, Any] = next(
        (function.get("parameters", {}) for function in functions if function.get("name") == name), {}
    )
    return {key: of.get("type") for key, of in schema.get("properties", {}).items() if isinstance(of, Mapping)}


def _value(text: str, kind: Any) -> Any:
    if kind == "string":
        return text
    if kind == "boolean" and text in ("True", "False"):  # some templates write Python's
        return text == "True"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# --- learned from a template ------------------------------------------------------------------------------------------


def learn(call: str, begins: int, more: str) -> CallFormat | None:
    """The format of a text with one call of NAME with the first of ARGUMENTS, which begins at `begins` at the latest;
    `more`: the same with both. None: it is none of those that are known.
    """
    return _json(call, begins) or _other(call, begins, more)


def _json(text: str, first: int) -> ToolCallFormat | None:
    decoder = json.JSONDecoder()
    for start in (n for n in range(first, len(text)) if text[n] in "[{"):
        try:
            found, _ = decoder.raw_decode(text[start:])
        except ValueError:
            continue
        call = found[0] if isinstance(found, list) and found else found
        if isinstance(call, dict) and NAME in call.values():
            return ToolCallFormat(
                begin=text[first:start].strip(),
                name_key=next(key for key, value in call.items() if value == NAME),
                arguments_key=next((key for key, value in call.items() if VALUE in str(value)), "arguments"),
                listed=isinstance(found, list),
            )
    return None


def _other(call: str, first: int, more: str) -> CallFormat | None:
    argument = call.find(_ARGUMENT, first)
    name = call.rfind(NAME, first, max(argument, 0))
    value = call.find(VALUE, argument)
    second = more.find(_OTHER, more.find(VALUE, first))
    if min(argument, name, value, second) < 0:
        return None
    begin, behind_name = call[first:name].strip(), call[name + len(NAME) : argument]
    if NAME in begin:  # it stands there twice: the last tag begins the call
        begin = "<" + begin.rpartition("<")[2]
    to_value, rest = call[argument + len(_ARGUMENT) : value], call[value + len(VALUE) :]
    between = more[more.find(VALUE, first) + len(VALUE) : second]
    if not begin:
        return None
    if "{" in behind_name:
        return NamedCallFormat(begin, "" if _is_json(call, name) else to_value.strip().removeprefix(":").strip())
    if behind_name == "(" and to_value in ("='", '="'):
        end = rest.partition(")")[2]
        closing = end.lstrip().removeprefix("]").lstrip() if begin.endswith("[") else end
        mark = re.match(r"\S[^>\s]*>?", closing)
        return PythonCallFormat(begin.removesuffix("[").strip(), mark[0]) if mark and begin != "[" else None
    return _tagged(begin, behind_name, to_value, between, rest)


def _tagged(begin: str, behind_name: str, to_value: str, between: str, rest: str) -> TaggedCallFormat | None:
    key = behind_name[max(0, behind_name.rfind("<")) :].strip()
    if not between.rstrip().endswith(key):
        return None
    value_end = between.strip().removesuffix(key).strip()
    end = re.match(r"\s*(<[^>]*>)", rest[rest.find(value_end) + len(value_end) :])
    if not key.startswith("<") or not value_end or not to_value.strip() or end is None:
        return None
    name_end = behind_name.strip().removesuffix(key).strip()
    return TaggedCallFormat(begin, name_end, key, to_value.strip(), value_end, end[1])


def _is_json(text: str, name: int) -> bool:
    start = text.find("{", name)
    try:
        json.JSONDecoder().raw_decode(text[start:])
    except ValueError:
        return False
    return True
