"""A chunk of given texts: read in forward passes, where its rewards are computed from what the model says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..engines.base import Completion, Prompt, TextOutputs, TextScorer
from ..rewards.call import Batch, call_here
from ..rewards.function import Reward
from .chunks import ChunkTask
from .collector import ChunkOutput


def read(
    scorer: TextScorer, task: ChunkTask, rewards: Sequence[Reward], on_output: Callable[[ChunkOutput], None]
) -> None:
    """Have the members that were set read the texts of the chunk, and call the functions with a few rows at a time.
    Raises RewardError, NotFiniteError.
    """
    wanted = frozenset[str]().union(*(reward.outputs for reward in rewards))
    for outputs in scorer.read(task.prompts, task.sampling.rows_at_once, wanted):
        firsts = [of_row[0] for of_row in outputs.logprobs]
        rows = {
            n: given_completion(task.prompts[n], logprobs.tolist())
            for n, logprobs in zip(outputs.rows, firsts, strict=True)
        }
        on_output(ChunkOutput(rows, call_here(rewards, _to_score(outputs, task))))


def given_completion(prompt: Prompt, logprobs: Sequence[float] | None) -> Completion:
    """The first text that is given for a prompt, with what was found of it."""
    text = prompt.given[0]
    return Completion(text.ids, text.text, truncated=False, logprobs=None if logprobs is None else tuple(logprobs))


def _to_score(outputs: TextOutputs, task: ChunkTask) -> Batch:
    """Rows as reward functions see them: completions as the dataset has them."""
    assert task.context is not None
    prompts = [task.prompts[n] for n in outputs.rows]
    places = [task.rows[n] for n in outputs.rows]
    found: dict[str, list[Any] | None] = {
        "completion_logprobs": [of_row[0] for of_row in outputs.logprobs],
        "rejected_logprobs": [of_row[-1] for of_row in outputs.logprobs] if len(prompts[0].given) > 1 else None,
        "logits": outputs.logits,
        "hidden_states": outputs.hidden_states,
    }
    return Batch(
        prompts=[p.content for p in prompts],
        completions=[p.given[0].content for p in prompts],
        completion_ids=[list(p.given[0].ids) for p in prompts],
        columns={name: [values[row] for row in places] for name, values in task.context.batch.columns.items()},
        state=task.context.state,
        outputs={name: values for name, values in found.items() if values is not None},
    )
