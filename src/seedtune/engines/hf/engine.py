"""A replica on transformers: any causal language model, on the CPU or a GPU."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import ConfigError, ModelError
from ...es.population import CENTER, Member
from ...noise import cpu
from ...perturb.bitsandbytes_layers import quantized_weights, unquantized_skeleton
from ...perturb.center import Center, read_state
from ...perturb.checks import check_finite, freeze
from ...perturb.full_rank import FullRank
from ...perturb.lowrank.members import LowRank
from ...perturb.master import model_digest
from ...perturb.perturbation import DTYPES, INFERENCE_ONLY, PerturbationSpec
from ...perturb.selection import select
from .. import loading
from ..base import Completion, OnCompletions, Prompt, Sampling, Seed, TextOutputs, Tools, Turns
from ..rounds import generate_in_rounds
from ..specs import ModelSpec, RuntimeSpec
from ..tokenization import Texts, of_texts
from . import reference
from .attention import install as install_attention
from .decoder import Decoder, FinishedRow
from .logprobs import distributions, logprobs
from .probe import Ways, find_ways
from .reader import Reader

#: Rows beyond which a batch is not faster, only larger (on a CPU: measured, see LOG.md).
MOST_ROWS = {"cpu": 128, "cuda": 256}


#: The engine that a model object belongs to: the last that was made of it.
_ENGINES: WeakKeyDictionary[PreTrainedModel, weakref.ref[HFEngine]] = WeakKeyDictionary()


def release(model: PreTrainedModel) -> None:
    """Take a model object from the engine that has it, if any: it is that one's center from now on."""
    if (engine := _ENGINES.get(model, lambda: None)()) is not None:
        engine.detach()


#: Decoding of SmolLM2-135M took four times as long on an Intel Xeon of 2019 (Cascade Lake), 48 rows, one thread.
SLOW_BFLOAT16 = (
    "this processor has no bfloat16 arithmetic and emulates it; with dtype: float32 it decodes several times as fast, "
    "in twice the memory"
)


def emulates_bfloat16() -> bool:
    """Whether this is an x86 processor without instructions for bfloat16."""
    can = torch.cpu.get_capabilities()
    return can.get("architecture") == "x86_64" and not (can.get("avx512_bf16") or can.get("amx_bf16"))


class HFEngine:
    """An `Engine` on transformers: holds a model and its center.

    `spec.dtype` is the precision of inference; checkpoints are written in the dtype that the model came in. Low-rank
    members share batches. The model's own sampling defaults (its `generation_config`) are not used. Without
    `decodes`, how the model can be run (`ways`) is found out when that is first needed.

    Raises ConfigError and ModelError.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: ModelSpec,
        perturbation: PerturbationSpec = INFERENCE_ONLY,
        runtime: RuntimeSpec | None = None,
        *,
        changed: bool = False,
        decodes: bool = True,
    ) -> None:
        self.runtime = runtime or RuntimeSpec()
        if self.runtime.threads:
            torch.set_num_threads(self.runtime.threads)
            cpu.set_threads(self.runtime.threads)
        self.spec, self.name, self.is_changed = spec, spec.model_name_or_path, changed
        loading.check_returns(model)
        frozen = () if perturbation is INFERENCE_ONLY else freeze(model)
        self.model = model.eval().requires_grad_(False)
        check_finite(model)
        self.tokenizer = tokenizer
        self.device = torch.device(_pick_device(self.runtime.device))
        self.texts = Texts(tokenizer, model, spec.chat_template_kwargs, **of_texts(spec))
        self._dtype = spec.torch_dtype
        if any(p.device != self.device for p in model.parameters()):
            self.model.to(self.device)
        install_attention(self.model, spec.attn_implementation)
        own, packed = dict(model.named_parameters()), quantized_weights(model)
        self._base_digest = model_digest({**own, **packed})
        self._members: list[Member] = []
        if decodes:
            self._find_ways()
        self.selection = select(model, perturbation, frozen)
        self._base_dtype = model.dtype
        self._base_dtypes = {n: model.dtype if n in packed else p.dtype for n, p in own.items()}
        self._kept = self._cast_the_rest()
        self.center: Center = (
            LowRank(self.selection, perturbation, self._dtype)
            if perturbation.low_rank
            else FullRank(self.selection.parameters, perturbation, self._dtype)
        )
        if self._dtype == torch.float16 != self._base_dtype:
            check_finite(model, "dtype: float16 holds no more than 65504; use bfloat16")
        _ENGINES[model] = weakref.ref(self)
        weakref.finalize(self, self.center.detach).atexit = False  # the model outlives an engine that nobody uses

    def _find_ways(self) -> None:
        """Find out how the model can be run. Raises ModelError for one that cannot, or that is another one afterwards:
        nothing else could hold its weights.
        """
        own = dict(self.model.named_parameters())
        before = {name: p._version for name, p in own.items() if not p.is_inference()}
        _ = self.ways
        written = any(own[name]._version != version for name, version in before.items())
        if written and model_digest({**own, **quantized_weights(self.model)}) != self._base_digest:
            raise ModelError(
                f"{type(self.model).__name__} changes its own weights when it runs, so nothing else can hold them. "
                "RWKV: set rescale_every=0 in its configuration."
            )

    def _cast_the_rest(self) -> dict[str, torch.Tensor]:
        """Bring parameters that do not move to the dtype of inference; keep what a checkpoint could not get back."""
        kept = {}
        for name, parameter in self.model.named_parameters():
            if name in self.selection.quantized:
                continue  # whatever its codes are stored as
            moves = name in self.selection.parameters
            if not moves and parameter.dtype in DTYPES.values() and parameter.dtype != self._dtype:
                kept[name] = parameter.data.cpu()
                parameter.data = parameter.data.to(self._dtype)
        return kept

    @cached_property
    def ways(self) -> Ways:
        """How the model can be run. Raises ModelError for one that cannot."""
        if members := self._members:
            self.restore()
        gpu: dict[str, Any] = {"check_every": 8, "prefill_tokens": 16384} if self.device.type == "cuda" else {}

        def decoder(own_masks: bool) -> Decoder:
            own: dict[str, Any] = {
                "stops": self.texts.stops,
                "pad": self.texts.pad,
                "stop_strings": self.texts.stop_strings,
            }
            return Decoder(self.model, own_masks=own_masks, **own, **gpu)

        found = find_ways(self.model, self.tokenizer, self.texts.context, self.texts.pad, decoder)
        if members:
            self.set_members(members)
        return found

    @property
    def decoder(self) -> Decoder | None:
        """The decode loop; None: this model is decoded by transformers' own."""
        return self.ways.decoder

    # --- prompts ------------------------------------------------------------------------------------------------------

    def encode(
        self, prompts: Sequence[Any], max_completion_length: int, *, truncate: bool = False, tools: Tools = None
    ) -> list[Prompt]:
        return self.texts.encode(prompts, max_completion_length, truncate=truncate, tools=tools)

    def rows_that_fit(self, tokens: int) -> int:
        row = self._row_bytes(tokens)
        rows = int(self._memory() // row)
        if not rows:
            raise ConfigError(
                f"one row of {tokens} tokens takes {row / 1e9:.2g} GB of memory for its keys and values, and "
                f"{self._memory() / 1e9:.2g} GB may be used: raise generation_memory, or shorten the prompts or the "
                "completions."
            )
        return min(rows, MOST_ROWS[self.device.type])

    def fewer_rows(self, rows: int, tokens: int, planned: int) -> int:
        if tokens <= planned:
            return rows
        set_memory = 0.0 if self.device.type == "cuda" and self.runtime.generation_memory is None else self._memory()
        memory = max(rows * self._row_bytes(planned), set_memory)
        return max(1, min(rows, int(memory // self._row_bytes(tokens))))

    def _row_bytes(self, tokens: int) -> int:
        """Of a row of so many tokens: keys and values, and what its logits take."""
        config = self.model.config.get_text_config()
        hidden, layers = getattr(config, "hidden_size", 4096), getattr(config, "num_hidden_layers", 32)
        queries = getattr(config, "num_attention_heads", None) or 1
        heads = getattr(config, "num_key_value_heads", None) or queries
        width = getattr(config, "head_dim", None) or hidden // queries
        keys = 3 * layers * heads * width * tokens * self._dtype.itemsize  # two, and half as much for shared prefixes
        return int(keys + 12 * config.vocab_size + 16 * hidden)

    def _memory(self) -> float:
        """Bytes for the KV cache and logits: as set, else 1 GB on the CPU, half of what a GPU has free."""
        if self.runtime.generation_memory is not None:
            return self.runtime.generation_memory * 1e9
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] / 2
        return 1e9

    # --- members ------------------------------------------------------------------------------------------------------

    @property
    def mixes_members(self) -> bool:
        return isinstance(self.center, LowRank)

    def set_members(self, members: Sequence[Member]) -> None:
        self._check_mine()
        self.center.set_members(members)
        self._members = list(members)

    def restore(self) -> None:
        self.center.restore()
        self._members = []

    @property
    def sigma(self) -> float:
        return self.center.sigma

    def set_sigma(self, sigma: float) -> None:
        self.restore()
        self.center.sigma = sigma

    def divergence(
        self, members: Sequence[Member], prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> float:
        center = self.distributions(CENTER, prompts, completions)
        total = sum(kl(self.distributions(member, prompts, completions), center) for member in members)
        self.restore()
        return total / len(members)

    def distributions(
        self, member: Member, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> torch.Tensor:
        """Log-probabilities of the whole vocabulary at every token of the completions, [tokens, vocabulary]."""
        self.set_members([member] * len(prompts))
        ids, new = [p.ids for p in prompts], [c.ids for c in completions]
        return torch.cat(distributions(self.model, ids, new, self.texts.pad, pads=self.ways.pads))

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], temperature: float = 1.0, *, base: bool
    ) -> list[NDArray[np.float64]]:
        ids, chosen = [p.ids for p in prompts], [c.chosen for c in completions]
        if base:
            self._check_base()
        with self.center.as_base() if base else nullcontext():
            self.center.set_members([CENTER] * len(ids))
            return logprobs(self.model, ids, chosen, self.texts.pad, temperature=temperature, pads=self.ways.pads)

    def read(
        self, prompts: Sequence[Prompt], rows_at_once: int | None = None, wanted: Collection[str] = ()
    ) -> Iterator[TextOutputs]:
        reader = Reader(self.model, self.texts.pad, pads=self.ways.pads)
        try:
            yield from reader.read(prompts, rows_at_once or len(prompts), wanted, self.center.select_rows)
        except torch.OutOfMemoryError as e:
            raise ModelError(
                f"out of GPU memory with given texts of up to {max(p.num_tokens for p in prompts)} tokens: set "
                "generation_batch_size lower."
            ) from e

    has_distributions = True

    def divergence_from_base(self, prompts: Sequence[Prompt]) -> list[NDArray[np.float64]]:
        self._check_base()
        texts = [Completion(p.given[0].ids, p.given[0].text, truncated=False) for p in prompts]
        own = self.distributions(CENTER, prompts, texts)
        with self.center.as_base():
            base = self.distributions(CENTER, prompts, texts)
        per_token = (own - base).mul_(own.exp()).sum(-1).double().cpu().numpy()
        return np.split(per_token, np.cumsum([len(text.ids) for text in texts])[:-1])

    def distance(self) -> float:
        self._check_base()
        return self.center.distance()

    def _check_base(self) -> None:
        if not self.center.keeps_base:
            raise ModelError("the base model's weights were not kept here: give keep_base=True, and restore: exact.")

    def update(self, members: Sequence[Member], coefficients: NDArray[np.float32], learning_rate: float) -> float:
        self._check_mine()
        return self.center.update(members, coefficients, learning_rate)

    def _check_mine(self) -> None:
        if _ENGINES.get(self.model, lambda: self)() is not self:
            raise ModelError(
                "this trainer's model object has been given to another trainer since, which goes on from its weights: "
                "use that one, or make a new trainer; two that are used in turn need a model object each."
            )

    def reset(self) -> None:
        self._check_mine()
        self._check_base()
        self.center.reset()

    def digest(self) -> str:
        return self.center.digest()

    # --- completions --------------------------------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: Seed, on_completions: OnCompletions | None = None
    ) -> list[Completion]:
        completions: dict[int, Completion] = {}
        self._decode(prompts, sampling, seed, [completions.update, *([on_completions] if on_completions else [])])
        return [completions[n] for n in range(len(prompts))]

    def converse(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: Seed, on_completions: OnCompletions, turns: Turns
    ) -> None:
        if self.decoder is None:
            members = self._members or [CENTER] * len(prompts)
            generate_in_rounds(self, members, prompts, sampling, seed, on_completions, turns)
        else:
            self._decode(prompts, sampling, seed, [on_completions], turns)

    def _decode(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: Seed,
        listeners: Sequence[OnCompletions],
        turns: Turns | None = None,
    ) -> None:
        """Finished rows are told to all `listeners`; `turns` are for the decode loop."""

        def collect(written: Sequence[FinishedRow]) -> None:
            ended = {
                w.row: self.texts.completion(
                    w.ids, w.logprobs, stopped=w.stopped, kl_uniform=w.kl_uniform, begin=w.begin
                )
                for w in written
            }
            for listener in listeners:
                listener(ended)

        ids = [p.ids for p in prompts]
        rooms = [self.texts.room(len(row), sampling.max_completion_length) for row in ids]
        members = self._members or [CENTER] * len(ids)
        rows_at_once = sampling.rows_at_once or len(ids)
        try:
            if self.decoder:
                select = self.center.select_rows
                self.decoder.decode(ids, members, sampling, seed, rows_at_once, select, collect, turns, rooms)
            elif sampling.logprobs or sampling.kl_uniform:
                raise ModelError("log-probabilities need a model that caches keys and values; this one does not.")
            else:
                batches = self.ways.batches([len(row) for row in ids], rows_at_once)
                for number, part in enumerate(_of_one_room(batches, rooms)):
                    self.center.select_rows(torch.tensor(part))
                    some = [ids[n] for n in part]
                    how = dataclasses.replace(sampling, max_completion_length=rooms[part[0]])
                    if (first := sampling.first_sampled_row) is not None:
                        how = dataclasses.replace(how, first_sampled_row=sum(n < first for n in part))
                    own = self.texts.pad, self.texts.stops, self.texts.stop_strings
                    # batches of one seed would draw the same numbers
                    theirs = (seed + number) % 2**63 if isinstance(seed, int) else [seed[n] for n in part]
                    out = reference.generate(self.model, some, how, theirs, *own)
                    collect([self._finished(row, ids[row], new) for row, new in zip(part, out, strict=True)])
        except torch.OutOfMemoryError as e:
            raise ModelError(
                f"out of GPU memory with {min(rows_at_once, len(ids))} rows of up to "
                f"{max(map(len, ids)) + sampling.max_completion_length} tokens: set generation_batch_size lower."
            ) from e

    def _finished(self, row: int, prompt: Sequence[int], new: list[int]) -> FinishedRow:
        """A row of transformers' own `generate`, without what stands behind a stop string."""
        end = self.texts.stop_strings.first_end(prompt, new) if self.texts.stop_strings else None
        return FinishedRow(row, new[:end], None, stopped=end is not None)

    def saves_as(self, other: HFEngine) -> None:
        """Write checkpoints in the dtypes of another engine's base model."""
        self._base_dtypes, self._base_dtype = other._base_dtypes, other._base_dtype

    def detach(self) -> None:
        """Give the model's layers their own forward passes back: it computes the center from now on."""
        self.restore()
        self.center.detach()

    def center_in_full(self) -> dict[str, torch.Tensor]:
        """The parameters that inference holds rounded, as they are."""
        self.restore()
        return {**self._kept, **{name: self.center.parameter(name, torch.float32) for name in self.center.names}}

    def save_state(self, file: Path) -> None:
        save_file(self.center.state(), file)

    def load_state(self, file: Path, digest: str, steps: int) -> bool:
        try:
            state = read_state(file)
        except (OSError, SafetensorError):
            return False
        sound = self.center.state_digest(state) == digest
        if sound:
            self.center.load_state(state, steps)
        return sound

    # --- files --------------------------------------------------------------------------------------------------------

    @property
    def software(self) -> str:
        return f"bitsandbytes {version('bitsandbytes')}" if self.selection.quantized else ""

    @property
    def remarks(self) -> Sequence[str]:
        remarks = [*self.texts.remarks, *self.center.master.remarks]
        if self.device.type == "cpu" and self._dtype == torch.bfloat16 and emulates_bfloat16():
            remarks.append(SLOW_BFLOAT16)
        if self.decoder is None:
            remarks.append("decodes by transformers' generate, more slowly: this model's state is no ordinary KV cache")
        return remarks

    def describe(self) -> Mapping[str, Any]:
        about: dict[str, Any] = {
            "model": self.name,
            "digest": self._base_digest,
            "base_dtype": str(self._base_dtype).removeprefix("torch."),
            "dtype": str(self._dtype).removeprefix("torch."),
            "parameters": sum(
                math.prod(self.selection.quantized[name].shape) if name in self.selection.quantized else p.numel()
                for name, p in self.model.named_parameters()
            ),
            "moved": self.center.num_perturbed,
            "left_out": self.selection.skipped,
            "scope": [
                [name, number, list(shape)]
                for name, number, shape in zip(self.center.names, self.center.ids, self.center.shapes, strict=True)
            ],
        }
        moving = {name: weight.kind for name, weight in self.selection.quantized.items() if name in self.center.names}
        return {**about, "quantized": moving} if moving else about

    def save(self, folder: Path) -> None:
        """Safetensors, configuration and tokenizer, in the base model's dtype and layout. Quantized layers are written
        as ordinary ones: so the checkpoint holds what was learned, and loads without bitsandbytes.
        """
        self.restore()
        loading.save(folder, self._saved_model(), self.tokenizer, self._state(), self._base_dtype)

    def save_base(self, folder: Path) -> None:
        state = self._state()
        if self.center.keeps_base:
            state |= {name: base.to(self._base_dtypes[name]) for name, base in self.center.base() if name in state}
        elif not self.center.is_as_exact_as(self._base_dtypes):
            raise ModelError(
                "the base is a model object that is stored nowhere, and master_dtype: bfloat16 rounds it: save it "
                "(save_pretrained) and give its folder, or set guard or drift_samples, with which it is kept."
            )
        loading.save(folder, self._saved_model(), self.tokenizer, state, self._base_dtype)

    def check_save(self, folder: Path) -> None:
        loading.save(folder, self._saved_model(), self.tokenizer, {}, self._base_dtype)

    def _saved_model(self) -> PreTrainedModel:
        return unquantized_skeleton(self.model) if self.selection.quantized else self.model

    def checkpoint_size(self, *, state: bool) -> int:
        shapes = {**dict(self.model.named_parameters()), **self.selection.quantized}
        size: int = sum(math.prod(shapes[name].shape) * dtype.itemsize for name, dtype in self._base_dtypes.items())
        return size + (sum(t.nbytes for t in self.center.state().values()) if state else 0)

    def _state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds."""
        state: dict[str, torch.Tensor] = self.model.state_dict()
        for name, weight in self.selection.quantized.items():
            layer = name.removesuffix("weight")
            for key in [key for key in state if key.startswith(layer) and key != f"{layer}bias"]:
                del state[key]  # codes and scales
            dtype = self._base_dtype
            values = self.center.parameter(name, dtype) if name in self.center.names else weight.dequantize().to(dtype)
            state[name] = values.T.contiguous() if weight.transposed else values
        for name, dtype in self._base_dtypes.items():
            if name in self.selection.quantized:
                continue
            if name in self.center.names and dtype != self._dtype:
                state[name] = self.center.parameter(name, dtype)
            elif name in self._kept:
                state[name] = self._kept[name].to(dtype)
        return state


def _of_one_room(batches: Iterable[Sequence[int]], rooms: Sequence[int]) -> Iterator[list[int]]:
    """The batches, parted so that all rows of one have room for equally many tokens."""
    for batch in batches:
        for room in sorted({rooms[n] for n in batch}, reverse=True):
            yield [n for n in batch if rooms[n] == room]


def kl(of: torch.Tensor, from_: torch.Tensor) -> float:
    """KL(of || from_) per token, the mean over rows of log-probabilities [tokens, vocabulary]."""
    return float((of - from_).mul_(of.exp()).sum(-1).mean())  # one tensor less than it reads


def _pick_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("device: cuda, but torch sees no GPU here. Use device: cpu, or install a CUDA build of torch.")
    return device
