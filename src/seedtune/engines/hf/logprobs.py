"""Log-probabilities of given completions, in one forward pass without decoding ("teacher forcing")."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ...errors import NotFiniteError
from ...utils.arguments import accepted

NOT_FINITE = (
    "the model's logits are no numbers (NaN or infinity): its weights are damaged, or they, or noise, are too large "
    "for this precision. Try dtype: float32, a smaller sigma, or another copy of the model."
)
#: How many logits are in memory at once.
_MAX_LOGITS = 2**23


def logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad: int,
    *,
    pads: bool = True,
    temperature: float = 1.0,
) -> list[NDArray[np.float64]]:
    """For each row, log p of each token of its completion, at a temperature; nothing is cut off.

    `pads`: rows of different lengths may share a batch. Batches depend on the number and the lengths of the rows alone,
    so two models of one architecture with the same weights yield the same bits. Raises NotFiniteError.
    """
    longest = max(map(len, completions), default=0) + 1
    rows = max(1, _MAX_LOGITS // (longest * model.config.get_text_config().vocab_size))
    order = sorted(range(len(prompts)), key=lambda n: (len(prompts[n]) + len(completions[n]), n))  # little padding
    out: dict[int, NDArray[np.float64]] = {}
    for first in range(0, len(order), rows):
        batch = order[first : first + rows]
        new = [completions[n] for n in batch]
        found = distributions(model, [prompts[n] for n in batch], new, pad, temperature, pads=pads)
        for n, log_p, ids in zip(batch, found, new, strict=True):
            chosen = log_p.gather(-1, torch.tensor(ids, dtype=torch.long, device=log_p.device)[:, None])[:, 0]
            out[n] = chosen.double().cpu().numpy()
            if np.isnan(out[n]).any():
                raise NotFiniteError(NOT_FINITE)
    return [out[n] for n in range(len(order))]


def last_logits(model: PreTrainedModel, count: int) -> dict[str, int]:
    """The argument that says how many logits of a row are wanted, where the model has it by name."""
    return {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def equal_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of rows, grouped by length."""
    groups: dict[int, list[int]] = {}
    for n, length in enumerate(lengths):
        groups.setdefault(length, []).append(n)
    return list(groups.values())


def distributions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad: int,
    temperature: float = 1.0,
    *,
    pads: bool = True,
) -> list[torch.Tensor]:
    """For each row, log p of every token of the vocabulary at every token of its completion: [tokens, vocabulary].

    `pads`: rows of different lengths may share a batch; else there is a batch per length.
    """
    if not pads:
        out: dict[int, torch.Tensor] = {}
        for group in equal_lengths([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]):
            some = [prompts[n] for n in group], [completions[n] for n in group]
            out.update(zip(group, distributions(model, *some, pad, temperature), strict=True))
        return [out[n] for n in range(len(prompts))]
    longest = max(map(len, completions))
    found = forward(model, prompts, completions, pad)
    logits = found.logits[:, -longest - 1 : -1].float()  # logits at n are of the token at n + 1
    if temperature != 1:
        logits = logits / temperature
    return [row[longest - len(new) :].log_softmax(-1) for row, new in zip(logits, completions, strict=True)]


def forward(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad: int,
    **more: bool,
) -> Any:
    """What the model returns for texts that end in one column; of the logits, where it can be asked for them, those
    from the last token before the longest completion on. `more`: what else it shall return.
    """
    rows = [[*prompt, *new] for prompt, new in zip(prompts, completions, strict=True)]
    width, longest = max(map(len, rows)), max(map(len, completions))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    how = accepted(model.forward, attention_mask=mask, position_ids=positions, use_cache=False, **more)
    with torch.inference_mode():
        return model(input_ids=ids, **how, **last_logits(model, longest + 1))
