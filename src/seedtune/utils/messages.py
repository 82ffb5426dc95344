"""Messages of a conversation, to show them."""

from __future__ import annotations

from typing import Any


def content_text(content: Any) -> str:
    """The text of a message's content: text, a list of text parts, or nothing (None)."""
    if isinstance(content, list | tuple):
        return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return "" if content is None else str(content)
