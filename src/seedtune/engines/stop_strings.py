"""Stop strings, as transformers has them: a completion ends with the token in which the text of prompt and completion
contains one of them to its end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase, StopStringCriteria

from ..errors import ConfigError

#: A token that is none: `StopStringCriteria` takes ids beyond the vocabulary for one that matches nothing.
NO_TOKEN = 2**31 - 1


class StopStrings:
    """Tells which rows have just ended with one of `strings`, by the last `width` tokens of a row. `criteria` is
    transformers' own.

    Raises ConfigError for strings that the tokenizer can never write.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        try:
            self.criteria = StopStringCriteria(tokenizer, list(strings))
        except Exception as e:
            raise ConfigError(f"stop_strings: {list(strings)} cannot be used with this tokenizer: {e}") from e
        self.width = int(self.criteria.maximum_token_len)

    def __call__(self, tails_N_T: torch.Tensor) -> torch.Tensor:
        """Whether each row ends now [N], from its last `width` tokens [N, T], with `NO_TOKEN` before its first."""
        ended: torch.Tensor = self.criteria(tails_N_T, None)
        return ended

    def tail(self, prompt: Sequence[int], ids: Sequence[int]) -> list[int]:
        """The last `width` tokens of a row with these tokens."""
        known = [*prompt[max(0, len(prompt) - self.width) :], *ids][-self.width :]
        return [NO_TOKEN] * (self.width - len(known)) + known

    def first_end(self, prompt: Sequence[int], ids: Sequence[int]) -> int | None:
        """After how many of its new tokens `ids` a row with this prompt ends first; None: after none of them."""
        if not ids:
            return None
        ended = self(torch.tensor([self.tail(prompt, ids[: n + 1]) for n in range(len(ids))])).nonzero()
        return int(ended[0]) + 1 if len(ended) else None
