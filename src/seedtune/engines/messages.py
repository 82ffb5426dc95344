"""Messages of a conversation, brought to what a chat template reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import DataError

_TEXT_PARTS = ("text", "input_text", "output_text")
#: What a message may hold instead of content: OpenAI's API has content null beside them.
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call")
#: Arguments of a template that say how its text ends.
_ENDS = {"add_generation_prompt", "continue_final_message"}
#: Stands where content is rendered, to see what a template does with it.
_MARK = "seedtune"


class ChatTemplate:
    """A tokenizer's chat template. `kwargs` are the user's, and come before what is chosen here.

    Content may be text, or a list of text parts (`[{"type": "text", "text": ...}]`); it reaches the template in the
    form that it renders.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
        self.tokenizer, self.kwargs = tokenizer, dict(kwargs)
        self._wants_parts: bool | None = None

    def replaced(self, template: str) -> ChatTemplate:
        """Another template for the same tokenizer, which keeps its own."""
        return ChatTemplate(self.tokenizer, {**self.kwargs, "chat_template": template})

    def render(self, messages: Any, **more: Any) -> str:
        """The conversation as text, with the generation prompt; an assistant message at its end is continued
        (transformers' `continue_final_message`). `more` goes to the template. Raises DataError.
        """
        plain = self._plain(messages)
        prefill = plain[-1].get("role") == "assistant" and plain[-1]["content"] is not None
        if prefill and not plain[-1]["content"].strip():
            plain, prefill = plain[:-1], False  # nothing to continue: the assistant's turn is open anyway
        how = {"continue_final_message": True} if prefill else {"add_generation_prompt": True}
        if _ENDS & set(self.kwargs):
            how = {}  # the user says
        return self._rendered(plain, **how, **{**more, **self.kwargs})

    def render_whole(self, messages: Any, **more: Any) -> str:
        """The conversation as text that ends with its last message. Raises DataError."""
        return self._rendered(self._plain(messages), **{**more, **self.kwargs, **dict.fromkeys(_ENDS, False)})

    def _plain(self, messages: Any) -> list[dict[str, Any]]:
        """Messages with text as content. Raises DataError."""
        if not self.tokenizer.chat_template:
            raise DataError(
                "the prompts are conversational (lists of messages), but the model's tokenizer has no chat template: "
                "use an instruct model, or give prompts as text."
            )
        if not isinstance(messages, Sequence) or not messages or not all(isinstance(m, Mapping) for m in messages):
            raise DataError(f"a conversation is a list of messages with role and content, not {str(messages)[:100]!r}.")
        return [_with_text(message, n) for n, message in enumerate(messages, 1)]

    def _rendered(self, messages: list[dict[str, Any]], **how: Any) -> str:
        try:
            return self._apply(self._in_form(messages), **how)
        except Exception as e:
            raise DataError(f"the chat template refuses {str(messages)[:200]}: {e}") from e

    def end_of_turn(self) -> int | None:
        """The special token that the template writes behind what the assistant says, where there is one."""
        if not self.tokenizer.chat_template:
            return None
        turn = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _MARK}]
        try:
            rendered = self._apply(self._in_form(turn), **self.kwargs)
            ids = self.tokenizer(rendered.rpartition(_MARK)[2].lstrip(), add_special_tokens=False)["input_ids"]
        except Exception:  # a template of other roles, or one that wants more than messages
            return None
        special = {*self.tokenizer.all_special_ids, *getattr(self.tokenizer, "added_tokens_decoder", {})}
        return int(ids[0]) if _MARK in rendered and ids and ids[0] in special else None

    def _in_form(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With content as text, or as parts where the template would lose text."""
        if self._wants_parts is None:
            self._wants_parts = not self._shows(_MARK) and self._shows(_parts(_MARK))
        if not self._wants_parts:
            return messages
        return [{**m, "content": m["content"] and _parts(m["content"])} for m in messages]

    def _shows(self, content: Any) -> bool:
        try:
            return _MARK in self._apply([{"role": "user", "content": content}], **self.kwargs)
        except Exception:
            return False

    def _apply(self, messages: list[dict[str, Any]], **how: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, **{"tokenize": False, **how}))


def _with_text(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The message with its text as content (None: it has something else). Raises DataError."""
    content = message.get("content")
    if isinstance(content, str):
        return dict(message)
    if content is None:
        if any(message.get(key) for key in _INSTEAD_OF_CONTENT):
            return {**message, "content": None}
        raise DataError(f"message {number} ({message.get('role')}) has no content (None): give its text, or remove it.")
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        kind = type(content).__name__
        raise DataError(f"message {number} has content of type {kind}: give text, or a list of text parts.")
    return {**message, "content": "".join(_part_text(part, number) for part in content)}


def _part_text(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise DataError(
        f"message {number} holds a part of type {kind!r}, and only text can be given to the model: "
        '[{"type": "text", "text": ...}], or the text itself.'
    )


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
