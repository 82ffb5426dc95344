"""Rollouts by a function of the user's: TRL's `rollout_func`, called for one member at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..engines.base import Completion, Engine, Generator, OnCompletions, Prompt, Seed
from ..errors import ConfigError, RewardError, SeedtuneError
from ..es.population import Member
from ..rewards.function import GIVEN
from ..utils.torch_settings import settings_kept
from .chunks import ChunkTask

#: What TRL requires of the dictionary that it returns; other keys are columns for reward functions.
_REQUIRED = ("prompt_ids", "completion_ids", "logprobs")
_MASK = "env_mask"


class RolloutFunc:
    """The user's `function(prompts, trainer)`; `trainer` may call `complete` meanwhile, for completions by the member
    whose rollout it is.
    """

    def __init__(self, function: Callable[..., Any], trainer: Any) -> None:
        self.function, self.trainer = function, trainer
        self._engine: Engine | Generator | None = None
        self._task: ChunkTask | None = None
        self._member: Member | None = None
        self._asked = 0

    def __call__(self, engine: Generator, task: ChunkTask, on_completions: OnCompletions) -> None:
        """The rows of a chunk, member by member; unscored samples are decoded as ever. Raises RewardError."""
        self._engine, self._task = engine, task
        try:
            for member in dict.fromkeys(task.members[: len(task.rows)]):
                rows = [n for n in range(len(task.rows)) if task.members[n] == member]
                self._member, self._asked = member, 0
                engine.set_members([member] * len(rows))
                on_completions(dict(zip(rows, self._completions(rows), strict=True)))
        finally:
            self._engine = self._task = self._member = None
        rest = range(len(task.rows), len(task.prompts))
        if rest:
            engine.set_members([task.members[n] for n in rest])
            seed = task.seed if isinstance(task.seed, int) else [task.seed[n] for n in rest]
            sampling = dataclasses.replace(task.sampling, first_sampled_row=0)
            done = engine.generate([task.prompts[n] for n in rest], sampling, seed)
            on_completions(dict(zip(rest, done, strict=True)))

    def complete(self, prompts: Sequence[Any]) -> list[dict[str, Any]]:
        """`prompt_ids`, `completion_ids`, `logprobs` and `text` of completions of prompts (text, messages or tokens) by
        the member at work. Raises ConfigError outside of a rollout.
        """
        if self._engine is None or self._task is None or self._member is None:
            raise ConfigError("completions by the member at work are there within rollout_func only.")
        sampling = dataclasses.replace(self._task.sampling, first_sampled_row=None, logprobs=True)
        given = [Prompt("", tuple(map(int, p))) if _is_tokens(p) else None for p in prompts]
        texts = [p for p, tokens in zip(prompts, given, strict=True) if tokens is None]
        encoded = iter(self._engine.encode(texts, sampling.max_completion_length))
        ready = [next(encoded) if tokens is None else tokens for tokens in given]
        self._engine.set_members([self._member] * len(ready))
        done = self._engine.generate(ready, sampling, self._seed())
        return [
            {
                "prompt_ids": list(prompt.ids),
                "completion_ids": list(completion.chosen),
                "logprobs": list(completion.logprobs or ()),
                "text": completion.text,
            }
            for prompt, completion in zip(ready, done, strict=True)
        ]

    def _seed(self) -> Seed:
        """Another for every call of a rollout."""
        assert self._task is not None
        self._asked += 1
        first = self._task.seed if isinstance(self._task.seed, int) else self._task.seed[0]
        return (first + self._asked) % 2**63

    def _completions(self, rows: Sequence[int]) -> list[Completion]:
        assert self._task is not None
        assert self._engine is not None
        prompts = [self._task.prompts[n].content for n in rows]
        try:
            with settings_kept():
                out = self.function(prompts, self.trainer)
        except SeedtuneError:  # of generate_completions: weights that are no numbers any more, memory
            raise
        except Exception as e:
            raise RewardError(f"rollout_func raised {type(e).__name__}: {e}") from e
        count = len(rows)
        if not isinstance(out, Mapping) or (missing := [key for key in _REQUIRED if key not in out]):
            what = f"lacks {missing[0]!r}" if isinstance(out, Mapping) else f"is a {type(out).__name__}"
            raise RewardError(
                f"what rollout_func returned {what}: as in TRL, it returns a dictionary with {', '.join(_REQUIRED)}, "
                f"each a list with one item per prompt, and columns for reward functions."
            )
        for key, values in out.items():
            if key in GIVEN and key not in _REQUIRED:
                raise RewardError(
                    f"rollout_func returned {key!r}, which the trainer itself gives to rewards: rename it."
                )
            if isinstance(values, Sequence) and not isinstance(values, str) and len(values) != count:
                raise RewardError(f"rollout_func returned {len(values)} {key} for {count} prompts.")
        fields = {key: values for key, values in out.items() if key not in (*_REQUIRED, _MASK)}
        return [self._completion(out, fields, n) for n in range(count)]

    def _completion(self, out: Mapping[str, Any], fields: Mapping[str, Any], n: int) -> Completion:
        assert self._engine is not None
        ids = [int(token) for token in out["completion_ids"][n]]
        logprobs = out["logprobs"] and out["logprobs"][n]
        mask = out[_MASK][n] if out.get(_MASK) else None
        if mask is not None and len(mask) != len(ids):
            raise RewardError(
                f"rollout_func returned an env_mask of {len(mask)} for a completion of {len(ids)} tokens."
            )
        texts = self._engine.texts
        begin = max((n for n, token in enumerate(ids[:-1], 1) if token in texts.stops), default=0)
        made: Completion = texts.completion(ids, logprobs, begin=begin)
        whole = str(texts.tokenizer.decode(list(made.ids), skip_special_tokens=True))
        own = {key: v[n] if isinstance(v, Sequence) and not isinstance(v, str) else v for key, v in fields.items()}
        kept = None if mask is None else tuple(int(m) for m in mask[: len(made.ids)])
        return dataclasses.replace(made, text=whole, fields=own, mask=kept)


def _is_tokens(prompt: Any) -> bool:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], int)
