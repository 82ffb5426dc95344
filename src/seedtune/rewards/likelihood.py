"""Rewards for supervised fine-tuning and for preferences: how likely the model finds given texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .outputs import reads_outputs


@reads_outputs
def log_likelihood(completion_logprobs: Sequence[Any], **_: Any) -> list[float]:
    """The mean log-probability per token of the completion, the one that ends it included, in nats: 1 / n sum_i log
    p(y_i | x, y_<i). The negative of the loss of supervised fine-tuning, of each row by itself, so that a long one
    counts no more than a short one; "average log-likelihood" in SimPO (Meng et al., arXiv 2405.14734, section 2.2).
    """
    return [float(logprobs.mean()) for logprobs in completion_logprobs]


@reads_outputs
def preference_margin(
    completion_logprobs: Sequence[Any], rejected_logprobs: Sequence[Any], per_token: bool = True, **_: Any
) -> list[float]:
    """How much likelier the chosen completion is than the rejected one, in nats: the difference of their mean
    log-probabilities per token. The margin of SimPO (Meng et al., arXiv 2405.14734, section 2.2, with beta = 1), which
    needs no reference model; without `per_token` that of sums, which prefers whichever text is shorter.
    """
    pairs = zip(completion_logprobs, rejected_logprobs, strict=True)
    if per_token:
        return [float(chosen.mean() - rejected.mean()) for chosen, rejected in pairs]
    return [float(chosen.sum() - rejected.sum()) for chosen, rejected in pairs]
