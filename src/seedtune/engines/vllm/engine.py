"""A replica on vLLM, which decodes; its workers hold theta (`worker`). Full-rank members are written into its weights
one after another; low-rank ones are LoRA adapters in memory, a whole population in one batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from ...errors import ConfigError, ModelError, NotFiniteError
from ...es.population import CENTER, Member
from ...perturb.bitsandbytes_layers import quantized_weights
from ...perturb.checks import check_finite
from ...perturb.master import model_digest
from ...perturb.perturbation import DTYPES, PerturbationSpec
from ...perturb.selection import Selection, select
from ...perturb.shard import Shard, join
from .. import loading
from ..base import NOT_OF_VLLM, Completion, OnCompletions, Prompt, Sampling, Seed, TextOutputs, Tools, Turns
from ..hf.engine import MOST_ROWS, HFEngine
from ..hf.logprobs import NOT_FINITE
from ..rounds import generate_in_rounds
from ..specs import ModelSpec, RuntimeSpec
from ..tokenization import Texts, context_length, of_texts
from .startup import check_version, hide_numba, installed, on_cpu, start

#: The ranks that vLLM's adapters can have.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VLLMEngine:
    """As `HFEngine`, but vLLM decodes. `population_size`: how many adapters a population of low rank needs.

    Raises ConfigError without a supported version of vLLM, ModelError for a model that vLLM cannot serve or whose
    parameters are not found in it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        perturbation: PerturbationSpec,
        runtime: RuntimeSpec,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        population_size: int,
    ) -> None:
        check_version()
        hide_numba()
        self.spec, self.perturbation, self.runtime, self.name = spec, perturbation, runtime, spec.model_name_or_path
        self.model, own = loading.load(spec)
        self.tokenizer = tokenizer or own
        if quantized_weights(self.model):
            raise ModelError(f"engine: vllm cannot perturb a quantized base, and {self.name!r} is one: use engine: hf.")
        check_finite(self.model)
        selection = select(self.model, perturbation)
        own_context = context_length(self.model)
        context = runtime.vllm_max_model_length
        if context and own_context and context > own_context:
            raise ConfigError(
                f"vllm_max_model_length is {context}; {self.name!r} attends to {own_context} tokens at most."
            )
        self._base_digest = model_digest(dict(self.model.named_parameters()))
        self._rows = runtime.generation_batch_size or MOST_ROWS["cpu" if on_cpu() else "cuda"]
        adapters = self._adapters(selection, population_size) if perturbation.low_rank else {}
        self._llm = start(spec, runtime, max_num_seqs=self._rows, **adapters)
        more: dict[str, Any] = {"limit": "vllm_max_model_length"} if context else {}
        more |= of_texts(spec)
        self.texts = Texts(self.tokenizer, self.model, spec.chat_template_kwargs, context=context, **more)
        self.sigma: float = perturbation.sigma
        self._members: list[Member] = []
        self._hf_engine: HFEngine | None = None
        self._rpc("seedtune_init", spec, perturbation, runtime)
        if missing := self._call("without_adapter")[0]:
            raise ModelError(
                f"vLLM has no LoRA adapters for {len(missing)} parameters in scope: {', '.join(missing[:8])}. Use "
                "scope: linear, or engine: hf."
            )
        self._workers = self._call("describe")
        self._shards = {name: [of[n][2] for of in self._scopes] for n, (name, *_) in enumerate(self._scopes[0])}

    @property
    def _scopes(self) -> list[list[tuple[str, int, Shard]]]:
        return [worker["scope"] for worker in self._workers]

    def _rpc(self, method: str, *args: Any) -> list[Any]:
        """What each worker returns."""
        results: list[Any] = self._llm.collective_rpc(method, args=args)
        return results

    def _call(self, method: str, *args: Any) -> list[Any]:
        return self._rpc("seedtune_call", method, *args)

    def _adapters(self, selection: Selection, population_size: int) -> dict[str, Any]:
        """vLLM's settings for low-rank members: which layers move, and an adapter per member and one for the center."""
        rank = self.perturbation.rank
        max_rank = next((r for r in _RANKS if r >= rank), None)
        if max_rank is None:
            raise ConfigError(f"rank {rank} is more than vLLM's adapters can have ({_RANKS[-1]}): use a lower rank.")
        layers = {name.split(".")[-2] for name in selection.linears}
        sizes = {"max_lora_rank": max_rank, "max_loras": population_size + 1, "max_cpu_loras": population_size + 1}
        return {"enable_lora": True, "lora_target_modules": sorted(layers), **sizes}

    # --- prompts and completions --------------------------------------------------------------------------------------

    def encode(
        self, prompts: Sequence[Any], max_completion_length: int, *, truncate: bool = False, tools: Tools = None
    ) -> list[Prompt]:
        return self.texts.encode(prompts, max_completion_length, truncate=truncate, tools=tools)

    def rows_that_fit(self, tokens: int) -> int:
        """vLLM itself lets rows wait that do not fit."""
        return self._rows

    def fewer_rows(self, rows: int, tokens: int, planned: int) -> int:
        """As many: those that do not fit wait."""
        return rows

    @property
    def mixes_members(self) -> bool:
        return self.perturbation.low_rank

    def set_members(self, members: Sequence[Member]) -> None:
        self._members = list(members)

    def restore(self) -> None:
        self._members = []
        self._call("restore")

    def converse(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: Seed, on_completions: OnCompletions, turns: Turns
    ) -> None:
        """In rounds: what was said before is in vLLM's own prefix cache."""
        members = self._members or [CENTER] * len(prompts)
        generate_in_rounds(self, members, prompts, sampling, seed, on_completions, turns)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: Seed, on_completions: OnCompletions | None = None
    ) -> list[Completion]:
        adapters = self._adapters_of_rows(len(prompts))
        requests = [
            (prompt.ids, self._params(sampling, seed, n, len(prompt.ids)), adapter)
            for n, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True))
        ]
        completions: dict[int, Completion] = {}
        rows_at_once = sampling.rows_at_once or self._rows
        if rows_at_once >= self._rows:  # vLLM itself lets the others wait
            rows_at_once = len(requests)
        for first in range(0, len(requests), rows_at_once):

            def collect(outs: Mapping[int, Any], first: int = first) -> None:
                finished = {first + n: self._completion(prompts[first + n], out.outputs[0]) for n, out in outs.items()}
                completions.update(finished)
                if on_completions:
                    on_completions(finished)

            self._serve(requests[first : first + rows_at_once], collect)
        return [completions[n] for n in range(len(prompts))]

    def _adapters_of_rows(self, count: int) -> list[Any]:
        """The adapter of each row's member (None: it has none), whose weights are vLLM's from now on."""
        from vllm.lora.request import LoRARequest

        numbers = self._call("set_members", self._members or [CENTER] * count)[0]
        return [LoRARequest(str(number), number, "in-memory") if number else None for number in numbers]

    def _serve(
        self, requests: Sequence[tuple[Sequence[int], Any, Any]], on_finished: Callable[[Mapping[int, Any]], None]
    ) -> None:
        """Run prompts with their sampling parameters and adapters; `on_finished` gets outputs that finish together."""
        engine, names, done = self._llm.llm_engine, list[str](), set[int]()
        try:
            for n, (ids, params, lora) in enumerate(requests):
                names.append(engine.add_request(str(n), {"prompt_token_ids": list(ids)}, params, lora_request=lora))
            while engine.has_unfinished_requests():
                outs = {n: out for out in engine.step() if (n := int(out.request_id)) not in done}
                if stopped := self._stopped({n: (requests[n][0], out) for n, out in outs.items() if not out.finished}):
                    engine.abort_request([names[n] for n in stopped], internal=True)
                if finished := {n: out for n, out in outs.items() if out.finished or n in stopped}:
                    done |= set(finished)
                    on_finished(finished)
        except BaseException:
            engine.abort_request(names, internal=True)
            raise

    def _params(self, sampling: Sampling, seed: Seed, row: int, num_tokens: int) -> Any:
        """Of a row whose prompt has `num_tokens` tokens."""
        from vllm import SamplingParams

        sampled = sampling.first_sampled_row is not None and row >= sampling.first_sampled_row
        if sampled:
            sampling = sampling.unrestricted
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p or 0.0,
            repetition_penalty=sampling.repetition_penalty,
            seed=(seed + row) % 2**63 if isinstance(seed, int) else seed[row],
            max_tokens=self.texts.room(num_tokens, sampling.max_completion_length),
            stop_token_ids=sorted(self.texts.stops),
            ignore_eos=True,  # stop tokens are the model's own, given above
            logprobs=0 if sampling.logprobs else None,
            detokenize=False,
        )

    def _stopped(self, running: Mapping[int, tuple[Sequence[int], Any]]) -> set[int]:
        """Which requests (prompt and output) a stop string ends now: vLLM's own stop strings are of another kind."""
        if (strings := self.texts.stop_strings) is None or not running:
            return set()
        tails = [strings.tail(prompt, list(out.outputs[0].token_ids)) for prompt, out in running.values()]
        return {n for n, ends in zip(running, strings(torch.tensor(tails)).tolist(), strict=True) if ends}

    def _completion(self, prompt: Prompt, out: Any) -> Completion:
        ids = list(out.token_ids)
        logprobs = None
        if out.logprobs is not None:
            logprobs = [step[token].logprob for step, token in zip(out.logprobs, ids, strict=True)]
        end = self.texts.stop_strings.first_end(prompt.ids, ids) if self.texts.stop_strings else None
        return self.texts.completion(ids[:end], logprobs and logprobs[:end], stopped=end is not None)

    # --- the workers' weights -----------------------------------------------------------------------------------------

    def set_sigma(self, sigma: float) -> None:
        self.sigma = sigma
        self._call("set_sigma", sigma)

    def divergence(
        self, members: Sequence[Member], prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> float:
        """By `HFEngine` on the host: it needs whole distributions. Only for `sigma: auto`, before the first update."""
        if self._hf_engine is None:
            runtime = dataclasses.replace(self.runtime, device="cpu")
            self._hf_engine = HFEngine(*loading.load(self.spec), self.spec, self.perturbation, runtime)
        self._hf_engine.set_sigma(self.sigma)
        return self._hf_engine.divergence(members, prompts, completions)

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], temperature: float = 1.0, *, base: bool
    ) -> list[NDArray[np.float64]]:
        if temperature != 1:
            raise ModelError(f"engine: vllm scores texts at temperature 1 only, not {temperature:g}: use engine: hf.")
        if base:
            self._check_base()
        try:
            if base:
                self._call("show_base")
            else:
                self._call("set_members", [CENTER])
            return self._of_texts([(p.ids, c.chosen, None) for p, c in zip(prompts, completions, strict=True)])
        finally:
            if base:
                self._call("show_center")

    def _of_texts(self, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...], Any]]) -> list[NDArray[np.float64]]:
        """log p of each token behind a prompt, by an adapter. From vLLM's log-probabilities of prompts; the last token
        is generated as the only allowed one, as a text may fill the context.
        """
        from vllm import SamplingParams

        found = [np.empty(len(ids)) for _, ids, _ in texts]
        given = [n for n, (_, ids, _) in enumerate(texts) if ids]
        wholes = [(*texts[n][0], *texts[n][1]) for n in given]

        def collect(outs: Mapping[int, Any]) -> None:
            for n, out in outs.items():
                ids, logprobs = wholes[n], found[given[n]]
                steps = [*out.prompt_logprobs[1:], out.outputs[0].logprobs[0]][-len(logprobs) :]
                logprobs[:] = [step[token].logprob for step, token in zip(steps, ids[-len(logprobs) :], strict=True)]

        def params(last: int) -> Any:
            return SamplingParams(
                temperature=0, max_tokens=1, allowed_token_ids=[last], logprobs=0, prompt_logprobs=0, detokenize=False
            )

        requests = [(ids[:-1], params(ids[-1]), texts[n][2]) for n, ids in zip(given, wholes, strict=True)]
        self._serve(requests, collect)
        return found

    def read(
        self, prompts: Sequence[Prompt], rows_at_once: int | None = None, wanted: Collection[str] = ()
    ) -> Iterator[TextOutputs]:
        if unseen := sorted(NOT_OF_VLLM & set(wanted)):
            raise ConfigError(f"engine: vllm gives log-probabilities, and no {unseen[0]}: use engine: hf.")
        adapters, size = self._adapters_of_rows(len(prompts)), rows_at_once or len(prompts)
        for first in range(0, len(prompts), size):
            rows = tuple(range(first, min(first + size, len(prompts))))
            texts = [(prompts[n].ids, text.ids, adapters[n]) for n in rows for text in prompts[n].given]
            logprobs = iter(self._of_texts(texts))
            of_rows = [[next(logprobs) for _ in prompts[n].given] for n in rows]
            if any(np.isnan(found).any() for of_row in of_rows for found in of_row):
                raise NotFiniteError(NOT_FINITE)
            yield TextOutputs(rows, of_rows)

    has_distributions = False

    def divergence_from_base(self, prompts: Sequence[Prompt]) -> list[NDArray[np.float64]]:
        raise ConfigError("engine: vllm has no whole distributions: use engine: hf.")

    def distance(self) -> float:
        return _norm(self._call("distance"))

    def update(self, members: Sequence[Member], coefficients: NDArray[np.float32], learning_rate: float) -> float:
        self._hf_engine = None
        return _norm(self._call("update", members, coefficients, learning_rate))

    def reset(self) -> None:
        self._check_base()
        self._call("reset")

    def _check_base(self) -> None:
        if not self._workers[0]["keeps_base"]:
            raise ModelError("the base model's weights were not kept here: give keep_base=True, and restore: exact.")

    def digest(self) -> str:
        return _digest_sum(self._call("digest"))

    @property
    def software(self) -> str:
        return f"vllm {installed()}"

    @property
    def remarks(self) -> Sequence[str]:
        theirs = dict.fromkeys(remark for worker in self._workers for remark in worker["remarks"])
        return [*self.texts.remarks, *theirs]

    def describe(self) -> Mapping[str, Any]:
        worker, dtype = self._workers[0], self.model.dtype
        return {
            "model": self.name,
            "digest": self._base_digest,
            "base_dtype": str(dtype).removeprefix("torch."),
            "dtype": self.spec.dtype,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "moved": worker["moved"],
            "left_out": worker["left_out"],
            "scope": [[name, number, list(shard.shape)] for name, number, shard in worker["scope"]],
        }

    def save(self, folder: Path) -> None:
        """The workers' center, unfused, in the base model's dtypes; `model` holds it afterwards, too."""
        for name, shards in self._shards.items():  # one by one: each is in memory twice meanwhile
            parameter = self.model.get_parameter(name)
            parameter.data = join(shards, self._call("center_shard", name, parameter.dtype))
        loading.save(folder, self.model, self.tokenizer, self.model.state_dict(), self.model.dtype)

    @property
    def is_changed(self) -> bool:
        return False

    def save_base(self, folder: Path) -> None:
        self.save(folder)

    def check_save(self, folder: Path) -> None:
        loading.save(folder, self.model, self.tokenizer, {}, self.model.dtype)

    def checkpoint_size(self, *, state: bool) -> int:
        each = DTYPES[self.perturbation.master_dtype].itemsize + 4 * self.perturbation.rule.moments
        return sum(p.nbytes for p in self.model.parameters()) + (self._workers[0]["moved"] * each if state else 0)

    def save_state(self, file: Path) -> None:
        state = {}
        for key in self._call("state_keys")[0]:
            shards = self._shards[key.partition("/")[2]]
            state[key] = join(shards, self._call("state_shard", key)).view(-1)
        save_file(state, file)

    def load_state(self, file: Path, digest: str, steps: int) -> bool:
        digests = self._call("stage_state", file)
        sound = None not in digests and _digest_sum(digests) == digest
        self._call("commit_state", steps if sound else None)
        return sound


def _norm(parts: Sequence[float]) -> float:
    """The norm of a vector from the norms of its parts."""
    return parts[0] if len(parts) == 1 else math.hypot(*parts)


def _digest_sum(digests: Sequence[str]) -> str:
    """The digest of the whole from those of its shards."""
    return f"{sum(int(digest, 16) for digest in digests) % 2**64:016x}"
