"""What a model thinks of given texts: one pass, no decoding ("teacher forcing")."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

#: Logits that are held at once, in numbers.
_HELD = 2**23


def logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad: int,
    temperature: float = 1.0,
) -> list[NDArray[np.float64]]:
    """For each row, log p of each token of its completion, at a temperature; nothing is cut off.

    Rows go through the model in pieces that depend on their number and lengths alone, so two models of one architecture
    with the same weights yield the same bits.
    """
    longest = max(map(len, completions), default=0) + 1
    rows = max(1, _HELD // (longest * model.config.get_text_config().vocab_size))
    order = sorted(range(len(prompts)), key=lambda n: (len(prompts[n]) + len(completions[n]), n))  # pads little
    out: dict[int, NDArray[np.float64]] = {}
    for first in range(0, len(order), rows):
        some = order[first : first + rows]
        asked, said = [prompts[n] for n in some], [completions[n] for n in some]
        for n, logits, ids in zip(some, distributions(model, asked, said, pad, temperature), said, strict=True):
            chosen = logits.gather(-1, torch.tensor(ids, dtype=torch.long, device=logits.device)[:, None])[:, 0]
            out[n] = chosen.double().cpu().numpy()
    return [out[n] for n in range(len(order))]


def distributions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad: int,
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """For each row, log p of every token of the vocabulary at every token of its completion: [tokens, vocabulary]."""
    rows = [[*prompt, *new] for prompt, new in zip(prompts, completions, strict=True)]
    width, longest = max(map(len, rows)), max(map(len, completions))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    only = {"logits_to_keep": longest + 1} if keeps else {}
    with torch.inference_mode():
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **only)
    logits = out.logits[:, -longest - 1 : -1].float()  # what stands at n says what comes at n + 1
    if temperature != 1:
        logits = logits / temperature
    return [row[longest - len(new) :].log_softmax(-1) for row, new in zip(logits, completions, strict=True)]
