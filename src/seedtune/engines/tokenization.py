"""From text to tokens and back: prompts are encoded, completions decoded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError, DataError
from ..utils.messages import content_text
from .base import Completion, GivenText, Prompt, Schemas, Tools
from .messages import ChatTemplate
from .specs import ModelSpec
from .stop_strings import StopStrings
from .tool_calls import ToolTurns

log = logging.getLogger(__name__)


def tokenizer_of(processing_class: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that a user gave, or that of the processor (of a multimodal model). Raises ConfigError."""
    tokenizer = processing_class
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = getattr(processing_class, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"processing_class is a tokenizer (or a processor that has one), not a {type(processing_class).__name__}: "
            "give AutoTokenizer.from_pretrained(...)."
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = getattr(processing_class, "chat_template", None)
    return tokenizer


class Texts:
    """A tokenizer, with the tokens that end a completion and the model's context length (None: unknown), which messages
    call `limit`.

    A completion ends at any token that the model's generation configuration, the tokenizer (its EOS) or the chat
    template (its end of turn) names: after fine-tuning they often differ; and at a stop string. `remarks` are what the
    user should know. Raises ConfigError for stop strings that the tokenizer cannot write.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        *,
        context: int | None = None,
        limit: str = "the model's context",
        skip_special_tokens: bool = True,
        stop_strings: Sequence[str] = (),
        max_prompt_length: int | None = None,
    ) -> None:
        self.tokenizer, self._limit = tokenizer, limit
        self.context = context or context_length(model)
        self.skip_special_tokens = skip_special_tokens
        self._chat_template = ChatTemplate(tokenizer, chat_template_kwargs or {})
        self.num_embeddings = _num_embeddings(model)
        self.remarks: list[str] = []
        self.stops = self._find_stops(model)
        self.pad = self._find_pad()
        self.max_prompt_length = max_prompt_length
        self.stop_strings = StopStrings(tokenizer, stop_strings) if stop_strings else None

    def _find_stops(self, model: PreTrainedModel) -> set[int]:
        generation = getattr(model, "generation_config", None)
        named = {
            "the generation configuration": token_ids(getattr(generation, "eos_token_id", None)),
            "the tokenizer": token_ids(self.tokenizer.eos_token_id),
            "the chat template": token_ids(self._chat_template.end_of_turn()),
        }
        known = {who: {n for n in ids if n < self.num_embeddings} for who, ids in named.items()}
        stops: set[int] = set().union(*known.values())
        if not stops:
            self.remarks.append("knows no token that ends a completion: all are cut off at max_completion_length")
        elif any(known.values()) and stops != known["the generation configuration"]:
            told = [f"{self._names(ids)} ({who})" for who, ids in known.items() if ids]
            self.remarks.append(f"ends completions at {', '.join(dict.fromkeys(told))}")
        return stops

    def _find_pad(self) -> int:
        pad, instead = self.tokenizer.pad_token_id, min(self.stops, default=0)
        if pad is None:
            return instead
        if not 0 <= pad < self.num_embeddings:
            self.remarks.append(
                f"pads with token {instead}, as the tokenizer's pad token ({pad}) is not among the "
                f"{self.num_embeddings} that the model has"
            )
            return instead
        return int(pad)

    def _names(self, ids: set[int]) -> str:
        return " and ".join(str(name) for name in self.tokenizer.convert_ids_to_tokens(sorted(ids)))

    @cached_property
    def tool_turns(self) -> ToolTurns:
        """Conversations with tools. Raises DataError for a chat template that cannot have them."""
        turns = ToolTurns(self.tokenizer, self._chat_template, self.stops)
        if turns.is_ours:
            self.remarks.append(
                "is shown tools by a ChatML template of ours, as its own knows none; it was hardly trained to call "
                "any, so examples in the prompt help (messages with tool_calls, and their results)"
            )
        return turns

    def encode(
        self, prompts: Sequence[Any], max_completion_length: int, *, truncate: bool = False, tools: Tools = None
    ) -> list[Prompt]:
        """Tokenize text as it is, and messages by the chat template, with the generation prompt; an assistant message
        at their end is continued. `tools`: the schemas of those that each prompt, a conversation, names.

        Of prompts longer than `max_prompt_length`, the last tokens are kept, as TRL did; a note says so. Raises
        DataError for a prompt that the template refuses, that holds what the model has no token for, or that does not
        fit the context, unless `truncate` shortens it.
        """
        encoded, cut = [], 0
        for number, content in enumerate(prompts, 1):
            try:
                ids = self._encode(content) if tools is None else self._with_tools(content, tools[number - 1])
            except DataError as e:
                raise DataError(f"prompt {number}: {e}") from e
            if not truncate and len(last := self._last(ids)) < len(ids):
                ids, cut = last, cut + 1
            if truncate and self.context is not None:
                ids = ids[: self.context - max_completion_length]
            if not self._fits(ids, max_completion_length):
                raise DataError(
                    f"prompt {number} has {len(ids)} tokens; with max_completion_length {max_completion_length} that "
                    f"is more than {self._limit} of {self.context}. Shorten the prompt or the completion.\n"
                    f"  {str(content)[:100]!r}"
                )
            if not ids:
                raise DataError(f"prompt {number} is empty, and the model has no token to begin with: {content!r}")
            encoded.append(Prompt(content, tuple(ids)))
        if cut:
            log.warning(
                f"{cut} of {len(prompts)} prompts have more than {self.max_prompt_length} tokens (max_prompt_length): "
                "only their last ones are read, so what they begin with is missing."
            )
        return encoded

    def encode_told(self, content: Any, tools: Schemas) -> Prompt | None:
        """A prompt with what an environment told during the run, as `encode` does it; None: the context has no room
        for a token behind it.
        """
        ids = self._last(self._with_tools(content, tools))
        return Prompt(content, tuple(ids)) if self.room(len(ids), 1) else None

    def room(self, num_tokens: int, max_completion_length: int) -> int:
        """How many tokens may stand behind a prompt of so many: what the context leaves, `max_completion_length` at
        most.
        """
        if self.context is None:
            return max_completion_length
        return max(0, min(max_completion_length, self.context - num_tokens))

    def _last(self, ids: list[int]) -> list[int]:
        return ids if self.max_prompt_length is None else ids[-self.max_prompt_length :]

    def _fits(self, ids: Sequence[int], max_completion_length: int) -> bool:
        return self.context is None or len(ids) + max_completion_length <= self.context

    def _encode(self, content: Any) -> list[int]:
        conversational = not isinstance(content, str)
        text = self._chat_template.render(content) if conversational else content
        return self._tokens(text, special=not conversational)

    def _with_tools(self, content: Any, tools: Schemas) -> list[int]:
        if isinstance(content, str):
            raise DataError("with tools, prompts are conversations: [{'role': 'user', 'content': ...}], not text.")
        return self._tokens(self.tool_turns.render(content, tools), special=False)

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        """`special`: with the tokens that a text begins with by itself."""
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise DataError(
                f"half of a surrogate pair ({text[e.start]!r}) stands at character {e.start}, which is no text: "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') joins or replaces such halves.\n"
                f"  {text[max(0, e.start - 40) : e.start + 40]!r}"
            ) from None
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        if special:
            ids = self._as_beginning(ids)
        if (beyond := max(ids, default=0)) >= self.num_embeddings:
            raise DataError(
                f"token {beyond} ({self.tokenizer.convert_ids_to_tokens(beyond)!r}) is not among the "
                f"{self.num_embeddings} that the model has: give the model's own tokenizer, or add rows with "
                "model.resize_token_embeddings(len(tokenizer))."
            )
        return ids

    def _as_beginning(self, ids: list[int]) -> list[int]:
        """Tokens of a text that goes on: without those that the tokenizer puts behind a whole one (EOS), and with those
        before it (BOS) once, where the text has them already, as a chat template writes it.
        """
        before, behind = self._around_text
        if before and ids[: 2 * len(before)] == 2 * before:
            ids = ids[len(before) :]
        return ids[: -len(behind)] if behind and ids[-len(behind) :] == behind else ids

    @cached_property
    def _around_text(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and behind a text."""
        whole, text = (self.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
        first = next((n for n in range(len(whole)) if whole[n : n + len(text)] == text), None)
        return ([], []) if first is None else (list(whole[:first]), list(whole[first + len(text) :]))

    def give(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Any]]) -> list[Prompt]:
        """The prompts, each with the completions that the dataset gives for it, tokenized as TRL's SFT does: what
        tokens the prompt with the completion has behind those of the prompt; a token that ends a completion is added
        where there is none (the chat template writes one), and what a template writes behind it is left out.

        Raises DataError for a completion that the template refuses, or that does not fit the context.
        """
        found = []
        for number, (prompt, texts) in enumerate(zip(prompts, completions, strict=True), 1):
            try:
                given = tuple(self._given(prompt.content, text) for text in texts)
            except DataError as e:
                raise DataError(f"completion {number}: {e}") from e
            found.append(replace(prompt, given=given))
            if self.context is not None and found[-1].num_tokens > self.context:
                raise DataError(
                    f"row {number} has {found[-1].num_tokens} tokens, its completion included, which is more than "
                    f"{self._limit} of {self.context}. Shorten it, or leave it out (max_prompt_length shortens "
                    f"prompts).\n  {str(prompt.content)[:100]!r}"
                )
        return found

    def _given(self, prompt: Any, completion: Any) -> GivenText:
        before = self._encode(prompt)
        if isinstance(prompt, str):
            text, whole = completion, self._encode(prompt + completion)
        else:
            turns = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else [*completion]
            text = "\n".join(content_text(turn["content"]) for turn in turns)
            whole = self._tokens(self._chat_template.render_whole([*prompt, *turns]), special=False)
        begins = whole[: len(before)] == before  # not so where a token reaches across the border
        ids = whole[len(before) :] if begins else self._tokens(text, special=False)
        ends = [n for n, token in enumerate(ids, 1) if token in self.stops]
        if not isinstance(prompt, str) and ends and begins:
            ids = ids[: ends[-1]]  # templates end a turn with a line break behind it
        end = self.tokenizer.eos_token_id if isinstance(prompt, str) else self._chat_template.end_of_turn()
        end = self.tokenizer.eos_token_id if end is None else end
        if end in self.stops and (not ids or ids[-1] not in self.stops):
            ids = [*ids, end]
        return GivenText(completion, text, tuple(ids))

    def completion(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float] | None = None,
        *,
        begin: int = 0,
        stopped: bool = False,
        kl_uniform: Sequence[float] | None = None,
    ) -> Completion:
        """The completion up to the first stop token; without one, it was cut off, unless a stop string ended it
        (`stopped`), which is part of it. `logprobs` and `kl_uniform` are those of `ids`. The last turn begins at
        `begin`: stop tokens before it ended others.
        """
        end = next((n for n in range(begin, len(ids)) if ids[n] in self.stops), None)
        kept, chosen = list(ids[:end]), len(ids) if end is None else end + 1
        return Completion(
            tuple(kept),
            self._decode(kept[begin:]),
            truncated=end is None and not stopped,
            logprobs=None if logprobs is None else tuple(logprobs[:chosen]),
            stop=None if end is None else int(ids[end]),
            kl_uniform=None if kl_uniform is None else tuple(kl_uniform[:chosen]),
        )

    def _decode(self, ids: list[int]) -> str:
        try:
            return str(self.tokenizer.decode(ids, skip_special_tokens=self.skip_special_tokens))
        except (TypeError, IndexError, KeyError):  # the model has more tokens, which not every tokenizer skips
            known = {*self.tokenizer.get_vocab().values()}
            ids = [n for n in ids if n in known]
            return str(self.tokenizer.decode(ids, skip_special_tokens=self.skip_special_tokens))


def of_texts(spec: ModelSpec) -> dict[str, Any]:
    """What `Texts` takes of a spec."""
    names = ("skip_special_tokens", "stop_strings", "max_prompt_length")
    return {name: getattr(spec, name) for name in names}


def context_length(model: PreTrainedModel) -> int | None:
    """How many tokens the model attends to; None: it does not say, or there is no limit."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _num_embeddings(model: PreTrainedModel) -> int:
    """How many tokens the model has."""
    size: int = model.config.get_text_config().vocab_size
    table = model.get_input_embeddings()
    return int(getattr(table, "num_embeddings", None) or size)


def token_ids(value: Any) -> set[int]:
    """Token ids, given as one, several or none."""
    values = value if isinstance(value, Sequence) else [value]
    return {int(n) for n in values if isinstance(n, int) and n >= 0}
