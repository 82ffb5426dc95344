"""Turns of conversations with tools: the chat template says how calls are written, so the format is learned from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from .base import Schemas
from .call_formats import ARGUMENTS, NAME, VALUE, CallFormat, MalformedCall, learn
from .messages import ChatTemplate

#: Stands where a template writes what a tool returned.
_RESULT = "seedtune_result"


def _with_arguments(arguments: Mapping[str, str]) -> dict[str, Any]:
    call = {"type": "function", "id": "seedtune0", "function": {"name": NAME, "arguments": dict(arguments)}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


_DUMMY = [{"role": "user", "content": "question"}]
_ASKS = [*_DUMMY, _with_arguments(dict([*ARGUMENTS.items()][:1]))]
_ANSWERED = [*_ASKS, {"role": "tool", "name": NAME, "content": _RESULT, "tool_call_id": "seedtune0"}]
_SCHEMA = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "",
        "parameters": {"type": "object", "properties": {name: {"type": "string"} for name in ARGUMENTS}},
    },
}
#: How ChatML begins a turn: templates of that format without tools can be given ours.
_CHATML = "<|im_start|>assistant\n"


@dataclass(frozen=True)
class Turn:
    """What the model said in one turn, as a message of the conversation; whether a call in it could not be read."""

    message: dict[str, Any]
    malformed: bool = False

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Name and arguments of each call."""
        return [call["function"] for call in self.message.get("tool_calls", ())]


class ToolTurns:
    """Turns of a conversation with tools, between messages and tokens.

    Calls are parsed by the tokenizer's own `response_template` where it has one (transformers' `parse_response`), else
    in the format that the chat template writes calls in. A ChatML template without tools is replaced by one of ours
    (`is_ours`). Raises DataError for a template that knows no tools, or that writes calls in a way that cannot be read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, stops: set[int]) -> None:
        self.tokenizer, self.stops, self.is_ours = tokenizer, stops, False
        self.template = template
        if not self._supported() and self._writes_chatml():
            ours = resources.files(__package__).joinpath("chatml_tools.jinja").read_text()
            self.template, self.is_ours = template.replaced(ours), True
        if not self._supported():
            raise DataError(
                "the chat template of this model knows no tools: it must render a conversation with tool_calls and a "
                "tool's result. Use a model that was trained to call tools (Qwen2.5-Instruct, Qwen3, Llama 3.1), or "
                "give its tokenizer a template that does (tokenizer.chat_template)."
            )
        self._parses_itself = getattr(tokenizer, "response_template", None) is not None
        self._format = None if self._parses_itself else self._learn()
        self._suffix_of(_ASKS, _ANSWERED, [_SCHEMA])  # raises now for a template that rewrites earlier turns

    def _supported(self) -> bool:
        try:
            asks, answered = (self.template.render(c, tools=[_SCHEMA]) for c in (_DUMMY, _ANSWERED))
        except DataError:
            return False
        return NAME in asks and VALUE in answered and _RESULT in answered

    def _writes_chatml(self) -> bool:
        try:
            return self.template.render(_DUMMY).endswith(_CHATML)
        except DataError:
            return False

    def _learn(self) -> CallFormat:
        """The format of the call that the template writes."""
        said = self.template.render_whole([*_DUMMY, {"role": "assistant", "content": "x"}])
        text, more = (self.template.render_whole([*_DUMMY, turn]) for turn in (_ASKS[-1], _with_arguments(ARGUMENTS)))
        first = next((n for n, (a, b) in enumerate(zip(text, said, strict=False)) if a != b), 0)
        if (found := learn(text, first, more)) is not None:
            return found
        raise DataError(
            "the chat template writes tool calls in a format that is not known (no JSON, no tags, no calls of Python), "
            "and its tokenizer does not say how to read it: set tokenizer.response_template (transformers' "
            "documentation, response parsing)."
        )

    def render(self, messages: Any, tools: Schemas) -> str:
        """The prompt, which names the tools. Raises DataError."""
        return self.template.render(messages, tools=list(tools))

    def parse(self, ids: Sequence[int], prompt: Sequence[int], tools: Schemas) -> Turn:
        """What the model said behind `prompt`. A call that cannot be read is no call, as in TRL."""
        ids = [token for token in ids if token not in self.stops]
        plain = {"role": "assistant", "content": str(self.tokenizer.decode(ids, skip_special_tokens=True))}
        try:
            if self._format is None:
                return Turn(self._parsed(ids, prompt, tools))
            content, calls = self._format.parse(str(self.tokenizer.decode(ids)), tools)
        except (ValueError, TypeError, KeyError):
            return Turn(plain, malformed=True)
        return Turn({"role": "assistant", "content": content, "tool_calls": calls} if calls else plain)

    def _parsed(self, ids: Sequence[int], prompt: Sequence[int], tools: Schemas) -> dict[str, Any]:
        found = self.tokenizer.parse_response(list(ids), prefix=list(prompt), tools=[dict(tool) for tool in tools])
        message = {**found, "role": "assistant", "content": found.get("content") or ""}
        for call in message.get("tool_calls") or ():
            if not isinstance(call["function"]["name"], str) or not isinstance(call["function"]["arguments"], Mapping):
                raise MalformedCall("a call names no tool")
        return message

    def suffix(self, turn: Turn, results: Sequence[Mapping[str, Any]], tools: Schemas) -> list[int]:
        """The tokens that stand between the turn's end and the next turn: the results, and the generation prompt.
        Raises DataError.
        """
        said = {**turn.message, "content": ""}
        asks = [*_DUMMY, said]
        return self._suffix_of(asks, [*asks, *results], tools)

    def _suffix_of(self, asks: Sequence[Any], answered: Sequence[Any], tools: Schemas) -> list[int]:
        """By what the template adds to a conversation of the same shape, as TRL does: what the model wrote itself is
        never tokenized again. Begins with the token that ends a turn.
        """
        before = self._tokens(self.template.render_whole(asks, tools=list(tools)))
        whole = self._tokens(self.template.render(answered, tools=list(tools)))
        earlier = len(self._tokens(self.template.render_whole(asks[:-1], tools=list(tools))))
        # Before the turn stand tokens of other roles, which may be stop tokens too (GLM's <|user|>).
        ends = [n for n, token in enumerate(before) if token in self.stops and n >= earlier]
        cut = ends[-1] if ends else len(before)
        if whole[:cut] != before[:cut]:
            cut -= _left_out(before[: cut + 1], whole, earlier)
        return whole[cut:]

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _left_out(before: Sequence[int], whole: Sequence[int], earlier: int) -> int:
    """How many tokens a template writes in the last turn alone, and leaves out of it in a conversation that goes on: an
    empty thought, as Qwen3's does, which the model never wrote. `before` ends with the end of that turn, and `earlier`
    tokens are of the turns before it. Raises DataError where anything else changes.
    """
    same = next((n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), 0)
    for count in range(1, len(before) - same - 1) if same >= earlier else ():
        if whole[same : len(before) - count] == before[same + count :]:
            return count
    raise DataError(
        "the chat template changes earlier turns when a tool's result is added, so a conversation cannot go on from "
        "what the model wrote: give its tokenizer a template that keeps them."
    )
