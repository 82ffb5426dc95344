"""Decoding by transformers' `generate`: one padded batch, until its longest row ends.

`decoder` is tested and measured against it, and models that it cannot decode (their state is not a KV cache, or their
positions are not those of the tokens alone) are decoded by this (`probe`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from ...errors import ModelError, NotFiniteError
from ..base import Sampling, Seed
from ..stop_strings import StopStrings
from .logprobs import NOT_FINITE
from .sampler import Sampler


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: Seed,
    pad: int,
    stops: set[int],
    stop_strings: StopStrings | None = None,
) -> list[list[int]]:
    """New tokens of every prompt; those after a stop token, or after a stop string, are padding. With a seed per row,
    `Sampler` chooses the tokens.
    """
    own = None if isinstance(seed, int) else _Choose(Sampler(sampling, len(prompts), seed, model.device))
    if own:
        sampling, seed = Sampling(sampling.max_completion_length), 0
    if (first := sampling.first_sampled_row) is not None:
        rest = dataclasses.replace(sampling, first_sampled_row=None)
        parts = [(prompts[:first], rest), (prompts[first:], rest.unrestricted)]
        both = [generate(model, some, how, seed, pad, stops, stop_strings) for some, how in parts if some]
        return [ids for part in both for ids in part]
    config = GenerationConfig(
        eos_token_id=sorted(stops) or None, pad_token_id=pad, max_new_tokens=sampling.max_completion_length
    )
    config.do_sample = sampling.temperature > 0
    if config.do_sample:
        config.temperature, config.top_p, config.top_k = sampling.temperature, sampling.top_p, sampling.top_k
        config.min_p = sampling.min_p
    config.repetition_penalty = sampling.repetition_penalty
    ends = StoppingCriteriaList([stop_strings.criteria] if stop_strings else [])
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        out = _generate(model, prompts, pad, config, ends, own)
    tokens: list[list[int]] = out[:, max(map(len, prompts)) :].tolist()
    return tokens


def greedy_logits(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int, steps: int
) -> tuple[list[list[int]], torch.Tensor]:
    """The greedy tokens of `steps` steps, whatever they are, and their logits [rows, steps, vocabulary]."""
    config = GenerationConfig(pad_token_id=pad, max_new_tokens=steps, output_logits=True, return_dict_in_generate=True)
    out = _generate(model, prompts, pad, config)
    return out.sequences[:, -steps:].tolist(), torch.stack(out.logits, dim=1).float()


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    pad: int,
    config: GenerationConfig,
    ends: StoppingCriteriaList | None = None,
    choose: _Choose | None = None,
) -> Any:
    """transformers' `generate`, of prompts padded on the left. Raises ModelError for a model that it does not take."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    try:
        with torch.inference_mode(), _without_defaults(model):
            return model.generate(  # type: ignore[operator]  # a method, which torch takes for a part of the model
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([_CheckFinite(), *([choose] if choose else [])]),
                stopping_criteria=ends,
            )
    except (torch.OutOfMemoryError, NotFiniteError):
        raise
    except Exception as e:
        raise ModelError(
            f"transformers' own generate fails with this model ({type(model).__name__}): {type(e).__name__}: {e}"
        ) from e


class _CheckFinite(LogitsProcessor):
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if not scores.amax(-1).isfinite().all():
            raise NotFiniteError(NOT_FINITE)
        return scores


class _Choose(LogitsProcessor):
    """Leaves the token that a sampler chooses for each row."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self._first = sampler, 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self._first = self._first or input_ids.shape[1]
        rows = torch.arange(len(scores), device=scores.device)
        num_generated = torch.full_like(rows, input_ids.shape[1] - self._first)
        tokens = self.sampler(scores, rows, num_generated, input_ids)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)  # type: ignore[return-value]  # plain tensors are float


@contextmanager
def _without_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's own sampling defaults (repetition penalty...), which would apply where `config` sets none."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
