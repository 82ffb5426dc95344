"""What engines do, as three protocols. A replica holds theta; everything it is given is small: members, prompts,
coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..es.population import Member

#: What reward functions may ask for of given texts, and vLLM does not give.
NOT_OF_VLLM = frozenset({"logits", "hidden_states"})


@dataclass(frozen=True)
class GivenText:
    """A completion that the dataset gives: as it has it (text, or messages), its text, and the tokens that are read."""

    content: Any
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt as the dataset has it (text, or messages), and as the model reads it. With `given` completions (one, or
    the chosen and the rejected one) these are read behind it, and nothing is decoded.
    """

    content: Any
    ids: tuple[int, ...]
    given: tuple[GivenText, ...] = ()

    @property
    def conversational(self) -> bool:
        """Whether it is messages, not text."""
        return not isinstance(self.content, str)

    @property
    def num_tokens(self) -> int:
        """Its tokens, with those of the longest given completion."""
        return len(self.ids) + max((len(text.ids) for text in self.given), default=0)


@dataclass(frozen=True)
class Sampling:
    """How to decode. Temperature 0 is greedy, the paper's choice: all variation comes from the parameters.

    `logprobs`, `kl_uniform`: completions carry that of each token that the model chose (see `Completion`).
    `min_p` and `repetition_penalty` are transformers' (the penalty counts for greedy rows, too).
    `rows_at_once`: how many rows of a chunk share a batch; None: all. `first_sampled_row`: rows of the chunk from this
    number on are drawn at temperature 1 with nothing cut off, whatever the others do.
    """

    max_completion_length: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    logprobs: bool = False
    rows_at_once: int | None = None
    first_sampled_row: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    kl_uniform: bool = False

    @property
    def unrestricted(self) -> Sampling:
        """At temperature 1 with nothing cut off."""
        rest: dict[str, Any] = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
        return replace(self, temperature=1.0, first_sampled_row=None, **rest)

    @property
    def is_models_own(self) -> bool:
        """Whether samples are of the model's own distribution at that temperature."""
        return self == replace(
            self.unrestricted, temperature=self.temperature, first_sampled_row=self.first_sampled_row
        )


@dataclass(frozen=True)
class Conversation:
    """A completion of several turns: the `prompt` as the model read it (with what an environment said first), and the
    `messages` behind it (of the assistant and of tools). How often it called a tool, how often that failed, and how
    many calls could not be read. `no_room`: it ended as what a tool or an environment said left no room. `kind`,
    `reward` and `environment`: see `tools.Outcome`.
    """

    prompt: Any
    messages: tuple[Mapping[str, Any], ...]
    calls: int = 0
    failures: int = 0
    malformed: int = 0
    no_room: bool = False
    kind: str = ""
    reward: float | None = None
    environment: bytes | None = None


@dataclass(frozen=True)
class Completion:
    """What the model wrote: new tokens without the end-of-sequence token, their text, and whether it was cut off; and
    the token that ended it.

    Of a `conversation` they are those of all turns, results of tools among them; the text is that of the last turn.
    `mask`: which of its tokens the model wrote (1; 0: a tool's result); None: all. `fields`: what `rollout_func` gives
    reward functions beside it.

    Where `Sampling` asks for them, of each token that the model chose (`chosen`), by its own distribution p over a
    vocabulary of V tokens (temperature 1, nothing cut off): `logprobs`, log p of it; `kl_uniform`, the KL of p from the
    uniform distribution, -1/V sum_j log(V p_j), in nats.
    """

    ids: tuple[int, ...]
    text: str
    truncated: bool
    logprobs: tuple[float, ...] | None = None
    stop: int | None = None
    kl_uniform: tuple[float, ...] | None = None
    conversation: Conversation | None = None
    fields: Mapping[str, Any] | None = None
    mask: tuple[int, ...] | None = None

    @property
    def num_written(self) -> int:
        """Tokens that the model wrote."""
        return len(self.ids) if self.mask is None else sum(self.mask)

    @property
    def chosen(self) -> tuple[int, ...]:
        """All that the model chose: the tokens, and the one that ended it."""
        return self.ids if self.stop is None else (*self.ids, self.stop)


@dataclass(frozen=True)
class TextOutputs:
    """What the model says of given texts that were read together: `rows` are their numbers in the chunk.

    Of each row and each of its texts the log-probabilities of the tokens; and, where they are wanted, of its first text
    the `logits` [tokens, vocabulary] that predict the tokens, and the `hidden_states` (of the embeddings and of every
    layer, each [tokens, hidden]) at the same places. These two are torch's, and of the model's dtype.
    """

    rows: tuple[int, ...]
    logprobs: list[list[NDArray[np.float64]]]
    logits: list[Any] | None = None
    hidden_states: list[tuple[Any, ...]] | None = None


#: JSON schemas of the tools that a prompt names, as chat templates take them.
Schemas = Sequence[Mapping[str, Any]]
#: Those of each prompt; None: there are no tools.
Tools = Sequence[Schemas] | None
#: One seed for a chunk, or one for each of its rows.
Seed = int | Sequence[int]
#: Rows of a chunk that have ended, by their number in it.
OnCompletions = Callable[[Mapping[int, Completion]], None]


class Turns(Protocol):
    """Conversations whose rows leave the batch between turns, while their tools run, and come back."""

    def ended(self, row: int, ids: Sequence[int], *, stopped: bool) -> bool:
        """A turn of a row of the chunk has ended; `ids` are all tokens behind its prompt, with those of earlier turns
        and of tools' results. Whether the row will go on; then its tools run from now on.
        """

    def resume(self, row: int) -> Sequence[int] | None:
        """The tokens to read before the row's next turn; waits for its tools. None: it ends as it is."""


class Generator(Protocol):
    """Decodes completions, of members or of the center. `texts` stands between text and tokens (`Texts`)."""

    tokenizer: Any
    texts: Any

    def encode(
        self, prompts: Sequence[Any], max_completion_length: int, *, truncate: bool = False, tools: Tools = None
    ) -> list[Prompt]:
        """Tokenize prompts, each with the schemas of its `tools`. Raises DataError for one that does not fit the
        model's context; `truncate`: shortens it.
        """

    def rows_that_fit(self, tokens: int) -> int:
        """How many rows of `tokens` tokens (prompt and completion) may be decoded at once. Raises ConfigError when none
        fits.
        """

    def fewer_rows(self, rows: int, tokens: int, planned: int) -> int:
        """How many rows of `tokens` tokens to decode at once where `rows` of `planned` tokens were chosen: fewer, where
        they are so much longer that memory needs it, but one at least. By settings and lengths, never by what is free
        at the moment, as completions depend on it.
        """

    @property
    def mixes_members(self) -> bool:
        """Whether members can share a batch."""

    def set_members(self, members: Sequence[Member]) -> None:
        """Row n of the next `generate` belongs to `members[n]`. Raises ModelError when another engine has the model."""

    def restore(self) -> None:
        """Go back to the center, and free what was made for members."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: Seed, on_completions: OnCompletions | None = None
    ) -> list[Completion]:
        """Decode one chunk, as a unit: what it yields depends on the chunk, the weights and `seed` alone. Rows with a
        seed each draw by that, whatever rows are beside them.

        `on_completions` is called as rows end, in an order that depends on the same alone. Raises NotFiniteError;
        ModelError where the model cannot give the log-probabilities that `sampling` asks for.
        """

    def converse(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: Seed, on_completions: OnCompletions, turns: Turns
    ) -> None:
        """As `generate`, turn by turn: rows go on until `turns` ends them, or `max_completion_length` tokens (or as
        many as the model's context leaves) stand behind their prompt. What comes of it depends on what tools return,
        and not on when.
        """


class TextScorer(Protocol):
    """Log-probabilities of given texts, in one forward pass without decoding."""

    @property
    def has_distributions(self) -> bool:
        """Whether it sees the probabilities of the whole vocabulary, as `divergence_from_base` needs them."""

    def encode(
        self, prompts: Sequence[Any], max_completion_length: int, *, truncate: bool = False, tools: Tools = None
    ) -> list[Prompt]:
        """As `Generator.encode`."""

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], temperature: float = 1.0, *, base: bool
    ) -> list[NDArray[np.float64]]:
        """Per completion, log p [tokens] in nats of each chosen token at a temperature, by the center, or by the base
        model it began as.

        Raises ModelError for the base when it was not kept.
        """

    def divergence(
        self, members: Sequence[Member], prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> float:
        """KL(member || center) in nats, the mean over members and over the tokens of the completions."""

    def set_members(self, members: Sequence[Member]) -> None:
        """As `Generator.set_members`, of the next `read`."""

    def read(
        self, prompts: Sequence[Prompt], rows_at_once: int | None = None, wanted: Collection[str] = ()
    ) -> Iterator[TextOutputs]:
        """Read one chunk of given texts (`Prompt.given`), a few rows at a time, in an order that depends on the chunk
        alone; `wanted`: `logits`, `hidden_states`. Raises NotFiniteError; ConfigError where this engine cannot, and
        ModelError where this model cannot.
        """

    def divergence_from_base(self, prompts: Sequence[Prompt]) -> list[NDArray[np.float64]]:
        """KL(center || base) [tokens] in nats at each token of the first given text of every prompt, summed over the
        vocabulary. Raises ModelError when the base was not kept; ConfigError where this engine cannot.
        """


class Weights(Protocol):
    """The center: updated, proved by its digest, saved and loaded."""

    @property
    def sigma(self) -> float:
        """The scale of members' noise."""

    def set_sigma(self, sigma: float) -> None:
        """Members are made with this noise scale from now on."""

    def update(self, members: Sequence[Member], coefficients: NDArray[np.float32], learning_rate: float) -> float:
        """Apply an update, with coefficients [members], to the center; returns the Euclidean norm of the step. Raises
        ModelError when another engine has the model.
        """

    def reset(self) -> None:
        """Be the base model again, as before the first update. Raises ModelError where it was not kept."""

    def digest(self) -> str:
        """The digest of the center's bits, 16 hexadecimal digits."""

    def distance(self) -> float:
        """The Euclidean distance of the center from the base model. Raises ModelError when that was not kept."""

    def save(self, folder: Path) -> None:
        """Write the center as a checkpoint that `from_pretrained` loads unaided."""

    @property
    def is_changed(self) -> bool:
        """Whether the base is a model object other than the one that is stored under its name."""

    def save_base(self, folder: Path) -> None:
        """Write the base model, as it came, before the first update. Raises ModelError where it was not kept."""

    def check_save(self, folder: Path) -> None:
        """Write all of a checkpoint but its weights. Raises ModelError for a model that cannot be saved as it is."""

    def checkpoint_size(self, *, state: bool) -> int:
        """Bytes of the weights of a checkpoint, with what `save_state` writes."""

    def save_state(self, file: Path) -> None:
        """Write what an update depends on, in full precision, so that a resume need not repeat all updates."""

    def load_state(self, file: Path, digest: str, steps: int) -> bool:
        """Take over a saved state if it is whole and has this digest, as after `steps` updates; whether it did."""

    def describe(self) -> Mapping[str, Any]:
        """The model in the header of the journal: name, dtype, scope with parameter ids and shapes."""


class Engine(Generator, TextScorer, Weights, Protocol):
    """One replica, which does all three. `model` is transformers'."""

    model: Any

    @property
    def software(self) -> str:
        """What decodes, beside torch and transformers, with its version; replicas must have the same."""

    @property
    def remarks(self) -> Sequence[str]:
        """What the user should know of how it works here, as "keeps the master in ...": what is slower than usual."""
