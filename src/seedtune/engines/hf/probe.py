"""How may this model be run? Found by what it does with two short texts: whatever way is taken, it must see them as
transformers' `generate` does when each is alone.

A model may look as if it had a KV cache and keep another state (RWKV), ignore which columns are padding (positions
counted from the cache, recurrence through padding), or let tokens attend to later ones (BERT). What it is called says
nothing of that, so it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import ModelError, NotFiniteError
from ..loading import quiet
from . import reference
from .decoder import Decoder
from .kv_cache import KVCache
from .logprobs import NOT_FINITE, distributions, equal_lengths

_TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it does so on every single day."
#: Tokens of the longer prompt (the other has a third) and of its continuation, at most.
_PROMPT, _STEPS = 12, 4
#: Root mean square error of log-probabilities, over that of their own variation, that rounding may explain. In half
#: precision ways that are right differ by up to 0.04, wrong ones by far more in trained models (LOG.md).
_TOLERANCE = {torch.float32: 5e-4, torch.float64: 5e-4}
_TOLERANCE_IN_HALF = 0.1
#: With layers that quantize what they read (LLM.int8), results depend on what shares the batch.
_TOLERANCE_QUANTIZED = 0.5


@dataclass(frozen=True)
class Ways:
    """`decoder`: who decodes, None: transformers' `generate`, of rows that may share a batch `together`: any, those of
    one length, or none. `pads`: rows of different lengths may share a forward pass that reads texts at once.
    """

    decoder: Decoder | None
    pads: bool
    together: Literal["any", "one length", "none"] = "any"

    def batches(self, lengths: Sequence[int], rows_at_once: int) -> list[list[int]]:
        """Which rows of these lengths `generate` completes together, `rows_at_once` at most."""
        groups = [list(range(len(lengths)))] if self.together == "any" else equal_lengths(lengths)
        count = 1 if self.together == "none" else rows_at_once
        return [group[n : n + count] for group in groups for n in range(0, len(group), count)]


def find_ways(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    pad: int,
    make_decoder: Callable[[bool], Decoder],
) -> Ways:
    """The ways that are right for this model; `make_decoder(own_masks)` raises ValueError where there is no decoder.

    Raises ModelError for a model that `generate` fails with, or that is not causal: what it says of a text that it
    reads at once is not what it says while it writes it.
    """
    if torch.is_autocast_enabled(model.device.type):
        raise ModelError("torch.autocast is on, which rounds where it likes: leave its context, and set dtype instead.")
    with quiet(), torch.inference_mode():
        probe = _Probe(model, _prompts(model, tokenizer, context), pad)
        padded = probe.agrees(lambda: probe.read(pads=True))
        if not padded and not probe.agrees(lambda: probe.read(pads=False)):
            raise ModelError(
                f"{type(model).__name__} is not a causal language model as it is loaded: what it says of a text that "
                "it reads at once is not what it says when it writes it token by token. Load it as a decoder (BERT and "
                "its kin: is_decoder=True in the configuration), or use another model."
            )
        for own_masks in (True, False):
            decoder = _decoder(make_decoder, own_masks)
            if decoder and probe.agrees(partial(probe.decode, decoder)):
                return Ways(decoder, padded)
        if probe.agrees(lambda: probe.generate(probe.prompts)):
            return Ways(None, padded)
        return Ways(None, padded, "one length" if probe.agrees(probe.generate_one_length) else "none")


def _decoder(make: Callable[[bool], Decoder], own_masks: bool) -> Decoder | None:
    try:
        return make(own_masks)
    except ValueError:
        return None


def _prompts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int | None) -> list[list[int]]:
    """A longer prompt and a shorter one, of the tokens of an ordinary text."""
    size = model.config.get_text_config().vocab_size
    ids = [n for n in tokenizer(_TEXT, add_special_tokens=False)["input_ids"] if n < size]
    ids = (ids or list(range(size))) * _PROMPT
    longer = max(2, min(_PROMPT, (context or _PROMPT + _STEPS) - _STEPS))
    return [ids[:longer], ids[longer : longer + max(1, longer // 3)]]


class _Probe:
    """Two prompts with their greedy continuations, and their log-probabilities [rows, steps, vocabulary]: the truth."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self.model, self.prompts, self.pad = model, prompts, pad
        alone = [reference.greedy_logits(model, [prompt], pad, _STEPS) for prompt in prompts]
        self.new = [tokens[0] for tokens, _ in alone]
        logits = torch.cat([logits for _, logits in alone])
        self._some = logits.isfinite().all(0).all(0)  # a model may rule tokens out
        if logits.isnan().any() or not self._some.any():
            raise NotFiniteError(NOT_FINITE)
        self.truth = logits.log_softmax(-1)[..., self._some]
        self.scale = (self.truth - self.truth.mean((0, 1))).square().mean().sqrt()
        quantized = not all(p.is_floating_point() for p in model.parameters()) or getattr(model, "is_quantized", False)
        self.tolerance = _TOLERANCE_QUANTIZED if quantized else _TOLERANCE.get(model.dtype, _TOLERANCE_IN_HALF)

    def agrees(self, run: Callable[[], torch.Tensor]) -> bool:
        """Whether a way of running the model gives these, by the median of a row's steps: in a mixture of experts
        rounding alone may send a token elsewhere.
        """
        try:
            found = run()[..., self._some]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a model says to arguments that it does not know
            return False
        errors = (found - self.truth).square().mean(-1).sqrt()
        return bool((errors.median(dim=1).values <= self.tolerance * self.scale).all())

    def read(self, *, pads: bool) -> torch.Tensor:
        """Both texts read at once without a cache: in one batch, or each alone."""
        return torch.stack(distributions(self.model, self.prompts, self.new, self.pad, pads=pads))

    def generate(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Prompts in one batch of `generate`."""
        return reference.greedy_logits(self.model, prompts, self.pad, _STEPS)[1].log_softmax(-1)

    def generate_one_length(self) -> torch.Tensor:
        """Each prompt in a batch of `generate` with another one of its length: itself, turned around."""
        return torch.cat([self.generate([prompt, prompt[::-1]])[:1] for prompt in self.prompts])

    def decode(self, decoder: Decoder) -> torch.Tensor:
        """The decode loop's forward passes: padded prompts, then the tokens one by one, in a cache with room left."""
        rows, width = len(self.prompts), max(map(len, self.prompts))
        cache = KVCache(decoder.num_layers, rows, width + 2 * _STEPS)
        starts = self._tensor([width - len(prompt) for prompt in self.prompts])
        ids = self._tensor([[self.pad] * (width - len(prompt)) + list(prompt) for prompt in self.prompts])
        steps = [decoder.forward(cache, ids, starts, slice(0, rows), 0, 0, width)]
        for n in range(_STEPS - 1):
            ids = self._tensor([[new[n]] for new in self.new])
            steps.append(decoder.forward(cache, ids, starts, slice(0, rows), 0, width + n, cache.columns))
        return torch.stack(steps, dim=1).float().log_softmax(-1)

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(values, device=self.model.device)
