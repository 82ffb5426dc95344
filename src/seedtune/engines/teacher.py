"""What a model thinks of given texts: one pass, no decoding ("teacher forcing")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


def distributions(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad: int
) -> list[torch.Tensor]:
    """For each row, log p of every token of the vocabulary at every token of its completion: [tokens, vocabulary]."""
    rows = [[*prompt, *new] for prompt, new in zip(prompts, completions, strict=True)]
    width, longest = max(map(len, rows)), max(map(len, completions))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    logits = out.logits[:, -longest - 1 : -1].float().log_softmax(-1)  # what stands at n says what comes at n + 1
    return [logits[n, longest - len(new) :] for n, new in enumerate(completions)]
