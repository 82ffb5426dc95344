"""Decoding by transformers' `generate`: one padded batch, kept to its longest row.

The reference that `decode` is held to and measured against, and the way for models whose cache is not one of keys and
values (state-space and linear-attention layers).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, PreTrainedModel

from .base import Sampling


def generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, pad: int, stops: set[int]
) -> list[list[int]]:
    """New tokens of every prompt; what follows a stop token means nothing."""
    if (first := sampling.drawn_from) is not None:
        plain = dataclasses.replace(sampling, drawn_from=None)
        drawn = dataclasses.replace(plain, temperature=1.0, top_p=1.0, top_k=0)
        parts = [(prompts[:first], plain), (prompts[first:], drawn)]
        return [ids for some, how in parts if some for ids in generate(model, some, how, seed, pad, stops)]
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    config = GenerationConfig(
        eos_token_id=sorted(stops) or None, pad_token_id=pad, max_new_tokens=sampling.max_completion_length
    )
    config.do_sample = sampling.temperature > 0
    if config.do_sample:
        config.temperature, config.top_p, config.top_k = sampling.temperature, sampling.top_p, sampling.top_k
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices), _no_defaults(model):
        torch.manual_seed(seed)
        out = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
    return out[:, width:].tolist()  # type: ignore[no-any-return]


@contextmanager
def _no_defaults(model: PreTrainedModel) -> Iterator[None]:
    """A model's own sampling defaults (repetition penalty, temperature...) would fill in what `config` leaves out."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
