"""Messages of a conversation, to show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def content_text(content: Any) -> str:
    """The text of a message's content: text, a list of text parts, or nothing (None)."""
    if isinstance(content, list | tuple):
        return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return "" if content is None else str(content)


def message_text(message: Mapping[str, Any]) -> str:
    """What a message says: its content, and the tools that it calls, as Python would."""
    content = content_text(message.get("content")).strip()
    calls = [_call_text(call.get("function", {})) for call in message.get("tool_calls") or ()]
    return "\n".join([*([content] if content else []), *calls])


def _call_text(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments")
    given = (
        ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        if isinstance(arguments, Mapping)
        else str(arguments or "")
    )
    return f"{function.get('name')}({given})"


def turns_of(messages: Any) -> list[tuple[str, str]]:
    """Who speaks, and what is said; of a tool, its name."""
    return [(str(m.get("name") or m["role"]), message_text(m)) for m in messages]
