"""A replica on vLLM: it generates, and its workers hold theta (`vllm_worker`). Full-rank members are written into its
weights one after another; low-rank ones are LoRA adapters in memory, a whole population in one batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError, ModelError
from ..es.population import Member
from ..perturb.host import digest as digest_of
from ..perturb.quantised import quantised
from ..perturb.scope import select_layers
from ..perturb.shard import Shard, join
from . import models
from .base import Completion, OnCompletions, Prompt, Sampling
from .hf import DTYPES, MOST_ROWS, HFEngine
from .texts import Texts
from .vllm_start import check_version, installed, on_cpu, spare_numba, start

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VLLMEngine:
    """As `HFEngine`, but that vLLM decodes. `load` and `how` are what `models.load` and `HFEngine` take; `members` is
    the size of the population, `rows` how many rows vLLM may decode at once, `memory` the share of the GPU's memory
    that it may take, `devices` over how many the model is spread, `context` the longest prompt with its completion
    (None: the model's own), `device` what the user expects it to run on.

    Raises ConfigError without a vLLM that it knows, ModelError for a model that vLLM cannot serve or whose parameters
    are not found in it.
    """

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        load: Mapping[str, Any],
        how: Mapping[str, Any],
        members: int,
        rows: int | None = None,
        memory: float = 0.9,
        devices: int = 1,
        context: int | None = None,
        device: str = "auto",
    ) -> None:
        check_version()
        spare_numba()
        self.name, self._load, self._how = name, dict(load), dict(how)
        self.model, own = models.load(name, **{**load, "dtype": DTYPES[load["dtype"]]})
        self.tokenizer = tokenizer or own
        if quantised(self.model):
            raise ModelError(f"engine: vllm cannot move a quantised base, and {name!r} is one: use engine: hf.")
        config = self.model.config.get_text_config()
        own_context = getattr(config, "max_position_embeddings", None)
        if context and own_context and context > own_context:
            raise ConfigError(f"vllm_max_model_length is {context}; {name!r} attends to {own_context} tokens at most.")
        self._base_digest = digest_of(dict(self.model.named_parameters()))
        self._rows = rows or MOST_ROWS["cpu" if on_cpu() else "cuda"]
        self._llm = start(
            name,
            load,
            device=device,
            devices=devices,
            gigabytes=how.get("generation_memory"),
            max_num_seqs=self._rows,
            max_model_len=context,
            gpu_memory_utilization=memory,
            **self._adapters(members),
        )
        limit = {"limit": "vllm_max_model_length"} if context else {}
        stops = getattr(self.model.generation_config, "eos_token_id", None)
        self.texts = Texts(self.tokenizer, stops, context or own_context, how.get("chat_template_kwargs"), **limit)
        self.sigma: float = how["sigma"]
        self._members: list[Member | None] = []
        self._reader: HFEngine | None = None
        self._rpc("seedtune_begin", name, self._load, self._how)
        if lost := self._do("not_carried")[0]:
            raise ModelError(
                f"vLLM's adapters cannot carry {len(lost)} parameters in scope: {', '.join(lost[:8])}. Use scope: "
                "linear, or engine: hf."
            )
        self._theta = self._do("described")
        self._shards = {name: [of[n][2] for of in self._scopes] for n, (name, *_) in enumerate(self._scopes[0])}

    @property
    def _scopes(self) -> list[list[tuple[str, int, Shard]]]:
        return [described["scope"] for described in self._theta]

    def _rpc(self, method: str, *args: Any) -> list[Any]:
        """What each worker says."""
        said: list[Any] = self._llm.collective_rpc(method, args=args)
        return said

    def _do(self, method: str, *args: Any) -> list[Any]:
        return self._rpc("seedtune_do", method, *args)

    def _adapters(self, members: int) -> dict[str, Any]:
        """What vLLM must know of low-rank members: which layers move, and one place more than there are, for the centre
        among them.
        """
        rank = self._how["rank"]
        if rank is None:
            return {}
        held = next((r for r in _RANKS if r >= rank), None)
        if held is None:
            raise ConfigError(f"rank {rank} is more than vLLM's adapters can have ({_RANKS[-1]}).")
        layers = {name.split(".")[-2] for name in select_layers(self.model, self._how["scope"]).found}
        places = {"max_lora_rank": held, "max_loras": members + 1, "max_cpu_loras": members + 1}
        return {"enable_lora": True, "lora_target_modules": sorted(layers), **places}

    # --- prompts and completions --------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[Any], max_completion_length: int, *, cut: bool = False) -> list[Prompt]:
        return self.texts.encode(prompts, max_completion_length, cut=cut)

    def rows_that_fit(self, tokens: int) -> int:
        """vLLM itself makes rows wait that do not fit."""
        return self._rows

    @property
    def mixes_members(self) -> bool:
        return self._how["rank"] is not None

    def become(self, members: Sequence[Member | None]) -> None:
        self._members = list(members)

    def restore(self) -> None:
        self._members = []
        self._do("restore")

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, on_completions: OnCompletions | None = None
    ) -> list[Completion]:
        from vllm.lora.request import LoRARequest

        adapters = self._do("seat", self._members or [None] * len(prompts))[0]
        requests = []
        for n, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True)):
            lora = LoRARequest(str(adapter), adapter, "in-memory") if adapter else None
            requests.append((prompt.ids, self._params(sampling, seed, n), lora))
        completions: dict[int, Completion] = {}
        together = sampling.rows_at_once or self._rows
        if together >= self._rows:  # vLLM itself makes the others wait
            together = len(requests)
        for first in range(0, len(requests), together):

            def collect(outs: Mapping[int, Any], first: int = first) -> None:
                ended = {first + n: self._completion(out.outputs[0]) for n, out in outs.items()}
                completions.update(ended)
                if on_completions:
                    on_completions(ended)

            self._serve(requests[first : first + together], collect)
        return [completions[n] for n in range(len(prompts))]

    def _serve(
        self, requests: Sequence[tuple[Sequence[int], Any, Any]], on_ended: Callable[[Mapping[int, Any]], None]
    ) -> None:
        """Prompts with their parameters and adapters, as a unit; `on_ended` gets those that end together."""
        engine, names = self._llm.llm_engine, []
        try:
            for n, (ids, how, lora) in enumerate(requests):
                names.append(engine.add_request(str(n), {"prompt_token_ids": list(ids)}, how, lora_request=lora))
            while engine.has_unfinished_requests():
                if ended := {int(out.request_id): out for out in engine.step() if out.finished}:
                    on_ended(ended)
        except BaseException:
            engine.abort_request(names, internal=True)
            raise

    def _params(self, sampling: Sampling, seed: int, row: int) -> Any:
        from vllm import SamplingParams

        drawn = sampling.drawn_from is not None and row >= sampling.drawn_from
        how = dataclasses.replace(sampling, temperature=1.0, top_p=1.0, top_k=0) if drawn else sampling
        return SamplingParams(
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            seed=(seed + row) % 2**63,
            max_tokens=how.max_completion_length,
            stop_token_ids=sorted(self.texts.stops),
            ignore_eos=True,  # stop tokens are the model's own, given above
            logprobs=0 if how.logprobs else None,
            detokenize=False,
        )

    def _completion(self, out: Any) -> Completion:
        ids = list(out.token_ids)
        chances = None
        if out.logprobs is not None:
            chances = [step[token].logprob for step, token in zip(out.logprobs, ids, strict=True)]
        return self.texts.completion(ids, chances)

    # --- theta: the workers' ------------------------------------------------------------------------------------------

    def set_sigma(self, sigma: float) -> None:
        self.sigma = sigma
        self._do("set_sigma", sigma)

    def divergence(
        self, members: Sequence[Member], prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> float:
        """By a replica on transformers, on the host: it takes whole distributions. Only for `sigma: auto`, before the
        first update.
        """
        if self._reader is None:
            model, tokenizer = models.load(self.name, **{**self._load, "dtype": DTYPES[self._load["dtype"]]})
            self._reader = HFEngine(model, tokenizer, name=self.name, device="cpu", **self._how)
        self._reader.set_sigma(self.sigma)
        return self._reader.divergence(members, prompts, completions)

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], temperature: float = 1.0, *, base: bool
    ) -> list[NDArray[np.float64]]:
        """vLLM says how likely each token of a prompt was; the last token of a text is one that it must choose."""
        from vllm import SamplingParams

        if temperature != 1:
            raise ModelError(f"engine: vllm reads texts at temperature 1, not {temperature:g}: use engine: hf.")
        if base and not self._theta[0]["keeps_base"]:
            raise ModelError("the base model's weights were not kept here: give keep_base=True, and restore: exact.")
        found = [np.empty(len(c.chosen)) for c in completions]
        asked = [n for n, c in enumerate(completions) if c.chosen]
        texts = [(*prompts[n].ids, *completions[n].chosen) for n in asked]

        def collect(outs: Mapping[int, Any]) -> None:
            for n, out in outs.items():
                ids, chances = texts[n], found[asked[n]]
                steps = [*out.prompt_logprobs[1:], out.outputs[0].logprobs[0]][-len(chances) :]
                chances[:] = [step[token].logprob for step, token in zip(steps, ids[-len(chances) :], strict=True)]

        def how(last: int) -> Any:
            return SamplingParams(
                temperature=0, max_tokens=1, allowed_token_ids=[last], logprobs=0, prompt_logprobs=0, detokenize=False
            )

        try:
            if base:
                self._do("show_base")
            else:
                self._do("seat", [None])
            self._serve([(ids[:-1], how(ids[-1]), None) for ids in texts], collect)
        finally:
            if base:
                self._do("show_centre")
        return found

    def distance(self) -> float:
        return _norm(self._do("distance"))

    def update(self, members: Sequence[Member], coefficients: NDArray[np.float32], rate: float) -> float:
        self._reader = None
        return _norm(self._do("update", members, coefficients, rate))

    def digest(self) -> str:
        return _sum(self._do("digest"))

    @property
    def software(self) -> str:
        return f"vllm {installed()}"

    @property
    def remarks(self) -> Sequence[str]:
        return [*dict.fromkeys(remark for theta in self._theta for remark in theta["remarks"])]

    def describe(self) -> Mapping[str, Any]:
        theta, dtype = self._theta[0], self.model.dtype
        return {
            "model": self.name,
            "digest": self._base_digest,
            "base_dtype": str(dtype).removeprefix("torch."),
            "dtype": self._how["dtype"],
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "moved": theta["moved"],
            "left_out": theta["left_out"],
            "scope": [[name, number, list(shard.shape)] for name, number, shard in theta["scope"]],
        }

    def save(self, folder: Path) -> None:
        """The workers' centre, unfused, in the base model's dtypes; `model` holds it then, too."""
        for name, shards in self._shards.items():  # one by one: each is held twice for a moment
            parameter = self.model.get_parameter(name)
            parameter.data = join(shards, self._do("centre_part", name, parameter.dtype))
        models.save(folder, self.model, self.tokenizer, self.model.state_dict(), self.model.dtype)

    def save_state(self, file: Path) -> None:
        state = {}
        for key in self._do("state_keys")[0]:
            shards = self._shards[key.partition("/")[2]]
            state[key] = join(shards, self._do("state_part", key)).view(-1)
        save_file(state, file)

    def load_state(self, file: Path, digest: str, steps: int) -> bool:
        offered = self._do("offer", file)
        sound = None not in offered and _sum(offered) == digest
        self._do("adopt", steps if sound else None)
        return sound


def _norm(parts: Sequence[float]) -> float:
    """The norm of a vector from the norms of its parts."""
    return parts[0] if len(parts) == 1 else math.hypot(*parts)


def _sum(digests: Sequence[str]) -> str:
    """Digests of shards add up."""
    return f"{sum(int(digest, 16) for digest in digests) % 2**64:016x}"
