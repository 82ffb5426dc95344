"""What every engine can do. A replica holds theta; everything it is told is small: members, prompts, coefficients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..es.population import Member


@dataclass(frozen=True)
class Prompt:
    """A prompt as the dataset has it (text, or messages), and as the model reads it."""

    content: Any
    ids: tuple[int, ...]

    @property
    def conversational(self) -> bool:
        return not isinstance(self.content, str)


@dataclass(frozen=True)
class Sampling:
    """How to decode. Temperature 0 is greedy, the paper's choice: all variation comes from the parameters.

    `logprobs`: completions carry the log-probability of each of their tokens (temperature 1, nothing cut off).
    `rows_at_once`: how many rows of a chunk share a batch; None: all. `drawn_from`: rows of the chunk from this number
    on are drawn at temperature 1 with nothing cut off, whatever the others do.
    """

    max_completion_length: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    logprobs: bool = False
    rows_at_once: int | None = None
    drawn_from: int | None = None


@dataclass(frozen=True)
class Completion:
    """What the model wrote: new tokens without the end-of-sequence token, their text, and whether it was cut off;
    the log-probability of each token, where `Sampling` asks for it; and the token that ended it.
    """

    ids: tuple[int, ...]
    text: str
    truncated: bool
    logprobs: tuple[float, ...] | None = None
    stop: int | None = None

    @property
    def chosen(self) -> tuple[int, ...]:
        """All that the model chose: the tokens, and the one that ended it."""
        return self.ids if self.stop is None else (*self.ids, self.stop)


#: Rows of a chunk that have ended, by their number in it.
OnCompletions = Callable[[Mapping[int, Completion]], None]


class Engine(Protocol):
    """One replica. `model` and `tokenizer` are transformers', `texts` stands between text and tokens."""

    model: Any
    tokenizer: Any
    texts: Any

    def encode(self, prompts: Sequence[Any], max_completion_length: int, *, cut: bool = False) -> list[Prompt]:
        """Tokenise prompts. Raises DataError for one that does not fit the model's context; `cut`: shortens it."""
        ...

    @property
    def mixes_members(self) -> bool:
        """Whether members can share a batch."""
        ...

    def become(self, members: Sequence[Member | None]) -> None:
        """Let row n of the next `generate` be answered by `members[n]`; None is the centre."""
        ...

    def restore(self) -> None:
        """Be the centre again, and let go of what was made for members."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, on_completions: OnCompletions | None = None
    ) -> list[Completion]:
        """Decode one chunk, as a unit: what it yields depends on the chunk, the weights and `seed` alone.

        `on_completions` is called as rows end, in an order that depends on the same alone.
        """
        ...

    @property
    def sigma(self) -> float:
        """The scale of members' noise."""
        ...

    def set_sigma(self, sigma: float) -> None:
        """Members are made with this noise scale from now on."""
        ...

    def divergence(
        self, members: Sequence[Member], prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> float:
        """KL(member || centre) in nats, the mean over members and over the tokens of the completions."""
        ...

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], temperature: float = 1.0, *, base: bool
    ) -> list[NDArray[np.float64]]:
        """Per completion, log p of each chosen token at a temperature, by the centre, or by the base model it began as.

        Raises ModelError for the base when it was not kept.
        """
        ...

    def distance(self) -> float:
        """The Euclidean distance of the centre from the base model. Raises ModelError when that was not kept."""
        ...

    def update(self, members: Sequence[Member], coefficients: NDArray[np.float32], rate: float) -> float:
        """Apply an update to the centre; returns the Euclidean norm of the step."""
        ...

    def digest(self) -> str:
        """The digest of the centre's bits, 16 hexadecimal digits."""
        ...

    def save(self, folder: Path) -> None:
        """Write the centre as a checkpoint that `from_pretrained` loads unaided."""
        ...

    def save_state(self, file: Path) -> None:
        """Write what an update depends on, in full precision, so that a resume need not repeat all updates."""
        ...

    def load_state(self, file: Path, digest: str, steps: int) -> bool:
        """Take over a saved state if it is whole and has this digest, as after `steps` updates; says whether."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What the run's header says of the model: name, dtype, scope with parameter ids and shapes."""
        ...

    @property
    def software(self) -> str:
        """What decodes, beside torch and transformers, with its version; replicas must have the same."""
        ...

    @property
    def remarks(self) -> Sequence[str]:
        """What the user should know of how it works here, as "keeps the master in ...": what is slower than usual."""
        ...

    def rows_that_fit(self, tokens: int) -> int:
        """How many rows of `tokens` tokens (prompt and completion) may be decoded at once; ConfigError when none."""
        ...
