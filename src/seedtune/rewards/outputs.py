"""Rewards that are computed from what the model says of given texts, in one forward pass: nothing is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError

if TYPE_CHECKING:
    from .function import Reward

F = TypeVar("F", bound=Callable[..., Any])

#: What such a function may ask for, by a parameter of that name: lists with one item per text.
OUTPUTS = ("completion_logprobs", "rejected_logprobs", "logits", "hidden_states")


def reads_outputs(function: F) -> F:
    """A decorator of a reward function that sees the model's outputs for the dataset's own completions.

    It is called by keyword as any reward function is, where the forward pass runs, with a few rows at a time; and gets,
    where it has the parameter, a list with one item per row of

    * `completion_logprobs`: log p of each token of the completion (NumPy, [tokens], in nats);
    * `rejected_logprobs`: the same of the rejected one, where rows have `chosen` and `rejected`;
    * `logits`: what predicts each token of the completion (torch, [tokens, vocabulary]);
    * `hidden_states`: a tuple of tensors [tokens, hidden], of the embeddings and of every layer, at the same places.
    """
    function.reads_outputs = True  # type: ignore[attr-defined]  # a mark: functions take any
    return function


def columns_read(rewards: Sequence[Reward]) -> tuple[str, ...]:
    """The columns that hold the texts which these functions read; none: they judge what is decoded.

    Raises ConfigError where some read and others judge: a run does one or the other.
    """
    reading = [reward for reward in rewards if reward.reads_outputs]
    if reading and len(reading) < len(rewards):
        judging = next(reward for reward in rewards if not reward.reads_outputs)
        raise ConfigError(
            f"{reading[0].name} is computed from the dataset's own completions, {judging.name} from what the model "
            "writes, and a run does one or the other: leave one of them out, or measure it with `seedtune eval` on a "
            "checkpoint."
        )
    if any("rejected_logprobs" in reward.outputs for reward in reading):
        return ("chosen", "rejected")
    return ("completion",) if reading else ()
