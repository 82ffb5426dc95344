"""Between text and tokens: prompts in, completions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from .base import Completion, Prompt


class Texts:
    """A tokenizer, the model's stop tokens and its context (tokens it can attend to; None: it does not say), which
    messages call `limit`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: int | Sequence[int] | None,
        context: int | None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        limit: str = "the model's context",
    ) -> None:
        self.tokenizer, self.context, self._limit = tokenizer, context, limit
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        if stops is None:
            stops = tokenizer.eos_token_id
        self.stops = {stops} if isinstance(stops, int) else set(stops or [])
        pad = tokenizer.pad_token_id
        self.pad = int(min(self.stops, default=0) if pad is None else pad)

    def encode(self, prompts: Sequence[Any], max_completion_length: int, *, cut: bool = False) -> list[Prompt]:
        """Tokenise text as it is, and messages by the model's chat template, which opens the assistant's turn.

        Raises DataError for a prompt that the template refuses, or that does not fit the context (`cut`: is shortened).
        """
        encoded = []
        for number, content in enumerate(prompts, 1):
            ids = self.tokenizer(content)["input_ids"] if isinstance(content, str) else self._conversation(content)
            if cut and self.context is not None:
                ids = ids[: self.context - max_completion_length]
            if self.context is not None and len(ids) + max_completion_length > self.context:
                raise DataError(
                    f"prompt {number} has {len(ids)} tokens; with max_completion_length {max_completion_length} that "
                    f"is more than {self._limit} of {self.context}. Shorten the prompt or the completion.\n"
                    f"  {str(content)[:100]!r}"
                )
            if not ids:
                raise DataError(f"prompt {number} is empty, and the model has no token to begin with: {content!r}")
            encoded.append(Prompt(content, tuple(ids)))
        return encoded

    def _conversation(self, messages: Any) -> list[int]:
        if not self.tokenizer.chat_template:
            raise DataError(
                "the prompts are conversational (lists of messages), but the model's tokenizer has no chat template: "
                "use an instruct model, or give prompts as text."
            )
        try:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **self._chat_template_kwargs
            )
        except Exception as e:
            raise DataError(f"the chat template refuses {str(messages)[:200]}: {e}") from e
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]

    def completion(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> Completion:
        """What stands before the first stop token; without one, the completion was cut off."""
        end = next((n for n, token in enumerate(ids) if token in self.stops), None)
        kept = list(ids[:end])
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        chances = None if logprobs is None else tuple(logprobs[:end])
        stop = None if end is None else int(ids[end])
        return Completion(tuple(kept), text, truncated=end is None, logprobs=chances, stop=stop)
