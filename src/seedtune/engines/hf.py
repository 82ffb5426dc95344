"""A replica on transformers: any causal language model, on the CPU or a GPU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError, ModelError
from ..es.population import Member
from ..es.update import UpdateRule
from ..noise import cpu
from ..perturb.centre import Centre
from ..perturb.full import FullRank
from ..perturb.host import digest as digest_of
from ..perturb.lowrank import LowRank
from ..perturb.quantised import plain, quantised
from ..perturb.scope import linear_layers, quantised_in_scope, select, select_layers
from . import models, reference
from .attention import install as install_attention
from .base import Completion, OnCompletions, Prompt, Sampling
from .cache import RowCache
from .decode import Decoder, Written
from .teacher import distributions, logprobs
from .texts import Texts

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
#: Rows beyond which a batch is not faster, only larger (on a CPU: measured, see LOG.md).
MOST_ROWS = {"cpu": 128, "cuda": 256}


class HFEngine:
    """Holds a model and its centre.

    `dtype` is the precision of inference, `master` that of the centre's own copy; checkpoints are written in the dtype
    that the model came in. `device` is `auto` (a GPU when there is one), `cpu`, `cuda` or `cuda:N`. With a `rank`
    members are low-rank and share batches. `generation_memory` is in GB; `keep_base` keeps a copy of the weights that
    move, as they came. The model's own sampling defaults (its `generation_config`) are not used.
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
        lowrank_vectors: bool = False,
        lowrank_embeddings: bool = False,
        rule: UpdateRule | None = None,
        threads: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        generation_memory: float | None = None,
        keep_base: bool = False,
        master: str = "float32",
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
            cpu.set_threads(threads)
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = torch.device(_pick_device(device))
        config = model.config.get_text_config()
        stops = getattr(model.generation_config, "eos_token_id", None)
        context = getattr(config, "max_position_embeddings", None)
        self.texts = Texts(tokenizer, stops, context, chat_template_kwargs)
        self._generation_memory = generation_memory
        self._dtype = DTYPES[dtype]
        own = dict(model.named_parameters())
        self._quantised = quantised(model)
        self._base_dtype = model.dtype
        self._base_dtypes = {n: model.dtype if n in self._quantised else p.dtype for n, p in own.items()}
        self._base_digest = digest_of({**own, **self._quantised})
        if any(p.device != self.device for p in own.values()):
            self.model.to(self.device)
        install_attention(self.model)
        how: dict[str, Any] = {"seed": seed, "sigma": sigma, "dtype": self._dtype, "noise": noise, "rule": rule}
        how |= {"keep_base": keep_base, "master": DTYPES[master]}
        if rank is None:
            chosen = select(model, scope)
            self._kept, self.left_out = self._cast_the_rest(chosen), quantised_in_scope(model, scope)
            self.centre: Centre = FullRank(chosen, restore=restore, **how)
        else:
            layers = select_layers(self.model, scope, lowrank_vectors, lowrank_embeddings)
            self._kept = self._cast_the_rest({**layers.found, **layers.embeddings, **layers.vectors})
            self.left_out = layers.left_out
            moving = {*layers.found.values()}
            how |= {"still": [layer for layer in linear_layers(model).values() if layer not in moving]}
            how |= {"together": layers.together, "quantised": layers.quantised}
            how |= {"embeddings": layers.embeddings, "vectors": layers.vectors}
            self.centre = LowRank(layers.found, rank=rank, **how)
        self._members: list[tuple[int, int]] = []
        self.decoder = self._make_decoder()

    def _cast_the_rest(self, chosen: Collection[str]) -> dict[str, torch.Tensor]:
        """Bring parameters out of scope to the dtype of inference; keep what a checkpoint could not get back."""
        kept = {}
        for name, parameter in self.model.named_parameters():
            if name in self._quantised:
                continue  # whatever its codes are stored as
            if name not in chosen and parameter.dtype in DTYPES.values() and parameter.dtype != self._dtype:
                kept[name] = parameter.data.cpu()
                parameter.data = parameter.data.to(self._dtype)
        return kept

    def _make_decoder(self) -> Decoder | None:
        """The decode loop, or None for a model with another kind of cache: that goes through transformers' own."""
        if RowCache.suits(self.model) is None:
            return None
        gpu = {"check_every": 8, "prefill_tokens": 16384} if self.device.type == "cuda" else {}
        return Decoder(self.model, stops=self.texts.stops, pad=self.texts.pad, **gpu)

    # --- prompts ------------------------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[Any], max_completion_length: int, *, cut: bool = False) -> list[Prompt]:
        return self.texts.encode(prompts, max_completion_length, cut=cut)

    def rows_that_fit(self, tokens: int) -> int:
        config = self.model.config.get_text_config()
        hidden, layers = getattr(config, "hidden_size", 4096), getattr(config, "num_hidden_layers", 32)
        queries = getattr(config, "num_attention_heads", None) or 1
        heads = getattr(config, "num_key_value_heads", None) or queries
        width = getattr(config, "head_dim", None) or hidden // queries
        keys = 3 * layers * heads * width * tokens * self._dtype.itemsize  # two, and half as much for shared prefixes
        row = keys + 12 * config.vocab_size + 16 * hidden
        rows = int(self._memory() // row)
        if not rows:
            raise ConfigError(
                f"one row of {tokens} tokens takes {row / 1e9:.2g} GB of memory for its keys and values, and "
                f"{self._memory() / 1e9:.2g} GB may be used: raise generation_memory, or shorten the prompts or the "
                "completions."
            )
        return min(rows, MOST_ROWS[self.device.type])

    def _memory(self) -> float:
        """Bytes for keys, values and logits: as told, else 1 GB on the CPU, half of what a GPU has free."""
        if self._generation_memory is not None:
            return self._generation_memory * 1e9
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] / 2
        return 1e9

    # --- members ------------------------------------------------------------------------------------------------------

    @property
    def mixes_members(self) -> bool:
        return isinstance(self.centre, LowRank)

    def become(self, members: Sequence[Member | None]) -> None:
        self.centre.become(members)
        self._members = [(-1, 0) if m is None else (m.pair, m.sign) for m in members]

    def restore(self) -> None:
        self.centre.restore()
        self._members = []

    @property
    def sigma(self) -> float:
        return self.centre.sigma

    def set_sigma(self, sigma: float) -> None:
        self.restore()
        self.centre.sigma = sigma

    def divergence(
        self, members: Sequence[Member], prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> float:
        def thinks(member: Member | None) -> torch.Tensor:
            self.become([member] * len(prompts))
            ids, new = [p.ids for p in prompts], [c.ids for c in completions]
            return torch.cat(distributions(self.model, ids, new, self.texts.pad))

        centre, total = thinks(None), 0.0
        for member in members:
            logs = thinks(member)
            total += float((logs.exp() * (logs - centre)).sum(-1).mean())
        self.restore()
        return total / len(members)

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], temperature: float = 1.0, *, base: bool
    ) -> list[NDArray[np.float64]]:
        ids, chosen = [p.ids for p in prompts], [c.chosen for c in completions]
        if base:
            self._check_base()
        with self.centre.as_base() if base else nullcontext():
            self.centre.become([None] * len(ids))
            return logprobs(self.model, ids, chosen, self.texts.pad, temperature)

    def distance(self) -> float:
        self._check_base()
        return self.centre.distance()

    def _check_base(self) -> None:
        if not self.centre.keeps_base:
            raise ModelError("the base model's weights were not kept here: give keep_base=True, and restore: exact.")

    def update(self, members: Sequence[Member], coefficients: NDArray[np.float32], rate: float) -> float:
        return self.centre.update(members, coefficients, rate)

    def digest(self) -> str:
        return self.centre.digest()

    # --- completions --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int,
        on_completions: OnCompletions | None = None,
    ) -> list[Completion]:
        completions: dict[int, Completion] = {}

        def collect(written: Sequence[Written]) -> None:
            ended = {w.row: self.texts.completion(w.ids, w.logprobs) for w in written}
            completions.update(ended)
            if on_completions:
                on_completions(ended)

        ids = [p.ids for p in prompts]
        members = self._members or [(-1, 0)] * len(ids)
        rows_at_once = sampling.rows_at_once or len(ids)
        try:
            if self.decoder:
                self.decoder.decode(ids, members, sampling, seed, rows_at_once, self.centre.seat, collect)
            elif sampling.logprobs:
                raise ModelError("log-probabilities need a model that caches keys and values; this one does not.")
            else:
                for first in range(0, len(ids), rows_at_once):
                    part = range(first, min(first + rows_at_once, len(ids)))
                    self.centre.seat(torch.tensor(part))
                    some, how = [ids[n] for n in part], sampling
                    if sampling.drawn_from is not None:
                        how = dataclasses.replace(sampling, drawn_from=max(0, sampling.drawn_from - first))
                    out = reference.generate(self.model, some, how, seed, self.texts.pad, self.texts.stops)
                    collect([Written(row, new, None) for row, new in zip(part, out, strict=True)])
        except torch.OutOfMemoryError as e:
            raise ModelError(
                f"out of GPU memory with {min(rows_at_once, len(ids))} rows of up to "
                f"{max(map(len, ids)) + sampling.max_completion_length} tokens: set generation_batch_size lower."
            ) from e
        return [completions[n] for n in range(len(ids))]

    def saves_as(self, other: HFEngine) -> None:
        """Write checkpoints in the dtypes of another engine's base model."""
        self._base_dtypes, self._base_dtype = other._base_dtypes, other._base_dtype

    def centre_in_full(self) -> dict[str, torch.Tensor]:
        """The parameters that inference holds rounded, as they are."""
        self.restore()
        return {**self._kept, **{name: self.centre.centre(name, torch.float32) for name in self.centre.names}}

    def save_state(self, file: Path) -> None:
        save_file(self.centre.state(), file)

    def load_state(self, file: Path, digest: str, steps: int) -> bool:
        try:
            state = load_file(file)
        except (OSError, SafetensorError):
            return False
        sound = self.centre.state_digest(state) == digest
        if sound:
            self.centre.adopt(state, steps)
        return sound

    # --- files --------------------------------------------------------------------------------------------------------

    @property
    def software(self) -> str:
        return f"bitsandbytes {version('bitsandbytes')}" if self._quantised else ""

    @property
    def remarks(self) -> Sequence[str]:
        return self.centre.store.remarks

    def describe(self) -> Mapping[str, Any]:
        about: dict[str, Any] = {
            "model": self.name,
            "digest": self._base_digest,
            "base_dtype": str(self._base_dtype).removeprefix("torch."),
            "dtype": str(self._dtype).removeprefix("torch."),
            "parameters": sum(
                math.prod(self._quantised[name].shape) if name in self._quantised else p.numel()
                for name, p in self.model.named_parameters()
            ),
            "moved": self.centre.moved,
            "left_out": self.left_out,
            "scope": [
                [name, number, list(shape)]
                for name, number, shape in zip(self.centre.names, self.centre.ids, self.centre.shapes, strict=True)
            ],
        }
        moving = {name: weight.kind for name, weight in self._quantised.items() if name in self.centre.names}
        return {**about, "quantised": moving} if moving else about

    def save(self, folder: Path) -> None:
        """Safetensors, configuration and tokenizer, in the base model's dtype and layout. Quantised layers are written
        as ordinary ones: so the checkpoint holds what was learned, and loads without bitsandbytes.
        """
        self.restore()
        model = plain(self.model) if self._quantised else self.model
        models.save(folder, model, self.tokenizer, self._state(), self._base_dtype)

    def _state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds."""
        state: dict[str, torch.Tensor] = self.model.state_dict()
        for name, weight in self._quantised.items():
            layer = name.removesuffix("weight")
            for key in [key for key in state if key.startswith(layer) and key != f"{layer}bias"]:
                del state[key]  # codes and scales
            dtype = self._base_dtype
            values = self.centre.centre(name, dtype) if name in self.centre.names else weight.values().to(dtype)
            state[name] = values.T.contiguous() if weight.transposed else values
        for name, dtype in self._base_dtypes.items():
            if name in self._quantised:
                continue
            if name in self.centre.names and dtype != self._dtype:
                state[name] = self.centre.centre(name, dtype)
            elif name in self._kept:
                state[name] = self._kept[name].to(dtype)
        return state


def _pick_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("device: cuda, but torch sees no GPU here. Use device: cpu, or install a CUDA build of torch.")
    return device
