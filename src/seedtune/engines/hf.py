"""A replica on transformers: any causal language model, on the CPU or a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import DataError, ModelError
from ..es.population import Member
from ..es.update import UpdateRule
from ..noise import cpu
from ..perturb.centre import Centre
from ..perturb.centre import digest as digest_of
from ..perturb.full import FullRank
from ..perturb.lowrank import LowRank
from ..perturb.scope import select, select_layers
from .base import Completion, Prompt, Sampling
from .models import quiet

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_CPU_BUDGET = 1 << 30


class HFEngine:
    """Holds a model and its centre.

    `dtype` is the precision of inference; checkpoints are written in the dtype that the model came in. `device` is
    `auto` (a GPU when there is one), `cpu`, `cuda` or `cuda:N`. With a `rank` members are low-rank and share batches.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        seed: int = 0,
        sigma: float = 0.0,
        dtype: str = "bfloat16",
        device: str = "auto",
        scope: str = "all",
        noise: str = "iid",
        restore: str = "exact",
        rank: int | None = None,
        rule: UpdateRule | None = None,
        threads: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
            cpu.set_threads(threads)
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = torch.device(_pick_device(device))
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        self._dtype = DTYPES[dtype]
        self._base_dtypes = {n: p.dtype for n, p in model.named_parameters()}
        self._base_dtype = model.dtype
        self._base_digest = digest_of(dict(model.named_parameters()))
        layers = select_layers(model, scope) if rank is not None else {}
        chosen = {name: layer.get_parameter("weight") for name, layer in layers.items()} or select(model, scope)
        self._kept = self._cast_the_rest(chosen)
        self.model.to(self.device)
        how: dict[str, Any] = {"seed": seed, "sigma": sigma, "dtype": self._dtype, "noise": noise, "rule": rule}
        self.centre: Centre = (
            FullRank(chosen, restore=restore, **how) if rank is None else LowRank(layers, rank=rank, **how)
        )
        self._own_generation_config = model.generation_config
        self.model.generation_config = self._plain_generation_config()

    def _cast_the_rest(self, chosen: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
        """Bring parameters out of scope to the dtype of inference; keep what a checkpoint could not get back."""
        kept = {}
        for name, parameter in self.model.named_parameters():
            if name not in chosen and parameter.dtype in DTYPES.values() and parameter.dtype != self._dtype:
                kept[name] = parameter.data.cpu()
                parameter.data = parameter.data.to(self._dtype)
        return kept

    def _plain_generation_config(self) -> GenerationConfig:
        """Stop tokens only. A model's own sampling defaults (repetition penalty, temperature...) would creep in."""
        own = self._own_generation_config
        eos = getattr(own, "eos_token_id", None)
        if eos is None:
            eos = self.tokenizer.eos_token_id
        self._stops = {eos} if isinstance(eos, int) else set(eos or [])
        pad = self.tokenizer.pad_token_id
        if pad is None:
            pad = min(self._stops, default=0)
        self._pad = int(pad)
        return GenerationConfig(eos_token_id=sorted(self._stops) or None, pad_token_id=self._pad)

    # --- prompts ------------------------------------------------------------------------------------------------------

    @property
    def context(self) -> int | None:
        """How many tokens the model can attend to, where its configuration says so."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def encode(self, prompts: Sequence[Any], max_completion_length: int) -> list[Prompt]:
        """Tokenise text as it is, and messages by the model's chat template, which opens the assistant's turn."""
        encoded = []
        for number, content in enumerate(prompts, 1):
            if isinstance(content, str):
                ids = self.tokenizer(content)["input_ids"]
            else:
                ids = self._apply_chat_template(content)
            if self.context is not None and len(ids) + max_completion_length > self.context:
                raise DataError(
                    f"prompt {number} has {len(ids)} tokens; with max_completion_length {max_completion_length} that "
                    f"is more than the model's context of {self.context}. Shorten the prompt or the completion.\n"
                    f"  {str(content)[:100]!r}"
                )
            encoded.append(Prompt(content, tuple(ids)))
        return encoded

    def _apply_chat_template(self, messages: Any) -> list[int]:
        if not self.tokenizer.chat_template:
            raise DataError(
                "the prompts are conversational (lists of messages), but the model's tokenizer has no chat template: "
                "use an instruct model, or give prompts as text."
            )
        try:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **self._chat_template_kwargs
            )
        except Exception as e:
            raise DataError(f"the chat template refuses {str(messages)[:200]}: {e}") from e
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]

    def rows_that_fit(self, tokens: int) -> int:
        """Rows of a chunk so that keys, values and logits fit: 1 GiB on the CPU, half of a GPU's free memory."""
        config = self.model.config.get_text_config()
        hidden, layers = getattr(config, "hidden_size", 4096), getattr(config, "num_hidden_layers", 32)
        queries = getattr(config, "num_attention_heads", None) or 1
        heads = getattr(config, "num_key_value_heads", None) or queries
        width = getattr(config, "head_dim", None) or hidden // queries
        cache = 2 * layers * heads * width * tokens * self._dtype.itemsize
        row = 2 * cache + 12 * config.vocab_size + 16 * tokens * hidden
        budget = _CPU_BUDGET
        if self.device.type == "cuda":
            budget = torch.cuda.mem_get_info(self.device)[0] // 2
        return max(1, min(int(budget // row), 256))

    # --- members ------------------------------------------------------------------------------------------------------

    @property
    def mixes_members(self) -> bool:
        return isinstance(self.centre, LowRank)

    def become(self, members: Sequence[Member | None]) -> None:
        self.centre.become(members)

    def update(self, members: Sequence[Member], coefficients: NDArray[np.float32], rate: float) -> float:
        return self.centre.update(members, coefficients, rate)

    def digest(self) -> str:
        return self.centre.digest()

    # --- completions --------------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, seed: int) -> list[Completion]:
        """One padded batch through transformers' `generate`; padding goes on the left, and is masked."""
        width = max(len(p.ids) for p in prompts)
        ids = torch.full((len(prompts), width), self._pad)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for n, prompt in enumerate(prompts):
            ids[n, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[n, width - len(prompt.ids) :] = 1
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            try:
                out = self.model.generate(
                    input_ids=ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    generation_config=self._decoding(sampling),
                )
            except torch.OutOfMemoryError as e:
                raise ModelError(
                    f"out of GPU memory with {len(prompts)} rows of up to {width + sampling.max_completion_length} "
                    "tokens: set generation_batch_size lower."
                ) from e
        return [self._completion(row) for row in out[:, width:].tolist()]

    def _decoding(self, sampling: Sampling) -> GenerationConfig:
        config = self._plain_generation_config()
        config.max_new_tokens = sampling.max_completion_length
        config.do_sample = sampling.temperature > 0
        if config.do_sample:
            config.temperature, config.top_p, config.top_k = sampling.temperature, sampling.top_p, sampling.top_k
        return config

    def _completion(self, ids: list[int]) -> Completion:
        end = next((n for n, token in enumerate(ids) if token in self._stops), None)
        kept = ids[:end]
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        return Completion(tuple(kept), text, truncated=end is None)

    # --- files --------------------------------------------------------------------------------------------------------

    def describe(self) -> Mapping[str, Any]:
        return {
            "model": self.name,
            "digest": self._base_digest,
            "base_dtype": str(self._base_dtype).removeprefix("torch."),
            "dtype": str(self._dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "moved": self.centre.moved,
            "scope": [
                [name, number, list(shape)]
                for name, number, shape in zip(self.centre.names, self.centre.ids, self.centre.shapes, strict=True)
            ],
        }

    def save(self, folder: Path) -> None:
        """Safetensors, configuration and tokenizer, in the base model's dtype and layout."""
        self.centre.become([None])
        state = self.model.state_dict()
        for name, dtype in self._base_dtypes.items():
            if name in self.centre.names and dtype != self._dtype:
                state[name] = self.centre.centre(name, dtype)
            elif name in self._kept:
                state[name] = self._kept[name]
        for name in getattr(self.model, "all_tied_weights_keys", None) or {}:
            state.pop(name, None)
        self.model.generation_config = self._own_generation_config
        try:
            with quiet():
                self.model.save_pretrained(folder, state_dict=state)
                self.tokenizer.save_pretrained(folder)
        finally:
            self.model.generation_config = self._plain_generation_config()
        config = folder / "config.json"
        settings = json.loads(config.read_text())
        settings["dtype"] = str(self._base_dtype).removeprefix("torch.")
        config.write_text(json.dumps(settings, indent=2) + "\n")


def _pick_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("device: cuda, but torch sees no GPU here. Use device: cpu, or install a CUDA build of torch.")
    return device
