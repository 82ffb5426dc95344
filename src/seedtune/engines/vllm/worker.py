"""The part that runs in vLLM's workers: theta, its noise and its updates. A worker is sent members, seeds and scalars,
never weights.

Every worker holds the master of the model that it serves, or of its shards of it (tensor parallelism). Noise is drawn
by Hugging Face name and index, so all bits are those of the engine on transformers. It is written into vLLM's own
weights: whole tensors, or rows of fused ones (`qkv_proj` is q, k and v, `gate_up_proj` gate and up).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.platforms import current_platform

from ...es.population import CENTER, Member
from ...noise import cpu, spec
from ...noise.cpu import Factors
from ...noise.spec import Key
from ...perturb.bitsandbytes_layers import QuantizedWeight
from ...perturb.center import Center, read_state
from ...perturb.full_rank import FullRank
from ...perturb.perturbation import PerturbationSpec
from ...perturb.selection import select
from ...perturb.shard import Shard, draw_factors
from .. import loading
from ..specs import ModelSpec, RuntimeSpec
from .cpu_packing import pack, packed_layers
from .startup import hide_numba
from .weight_map import locate_weights, name_mapper

hide_numba()


class WorkerExtension:
    """Mixed into vLLM's worker by its `worker_extension_cls`; called by `collective_rpc`."""

    model_runner: Any

    def seedtune_init(self, spec: ModelSpec, perturbation: PerturbationSpec, runtime: RuntimeSpec) -> None:
        """Make the center. Raises ModelError when not all of its weights are found in vLLM's model."""
        self.seedtune = WorkerWeights(spec, perturbation, runtime, self.model_runner)

    def seedtune_call(self, method: str, *args: Any) -> Any:
        """Call a method of `WorkerWeights`, or else of its center."""
        weights = self.seedtune
        return getattr(weights if hasattr(weights, method) else weights.center, method)(*args)


class LoRAMembers(Center):
    """Low-rank members as LoRA adapters of vLLM: the live weights are always the center's."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter | QuantizedWeight],
        spec: PerturbationSpec,
        dtype: torch.dtype,
        **parts: Any,
    ) -> None:
        super().__init__(parameters, spec, dtype, **parts)
        self.rank = spec.rank

    def restore(self) -> None:
        """Nothing to do: each row names its adapter."""

    def factors(self, keys: list[Key]) -> Sequence[Factors | None]:
        return draw_factors(keys, self.ids, self.shards, self.rank)

    def whole_factors(self, keys: list[Key]) -> dict[str, Factors | None]:
        """The factors of whole parameters, by name: vLLM itself shards adapters."""
        shards = [Shard(shard.shape) for shard in self.shards]
        return dict(zip(self.names, draw_factors(keys, self.ids, shards, self.rank), strict=True))


class WorkerWeights:
    """The center of the model that a worker serves, or of its shards."""

    def __init__(self, spec: ModelSpec, perturbation: PerturbationSpec, runtime: RuntimeSpec, runner: Any) -> None:
        self.runner = runner
        rank, world = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        if runtime.threads or world > 1:
            cores = len(os.sched_getaffinity(0))  # on a CPU, vLLM binds a worker to its own
            cpu.set_threads(runtime.threads or max(1, cores // (1 if current_platform.is_cpu() else world)))
        base, _ = loading.load(spec)
        selection = select(base, perturbation)
        self.skipped = selection.skipped if perturbation.low_rank else {}
        parameters = dict(base.named_parameters())
        found = locate_weights(parameters, [*selection.parameters], runner.get_model(), rank, world)
        self.live = {name: location.live for name, location in found.items()}
        kind: type[Center] = LoRAMembers if perturbation.low_rank else FullRank
        self.center = kind(
            {n: nn.Parameter(_copy_shard(parameters[n].data, p.shard), requires_grad=False) for n, p in found.items()},
            perturbation,
            spec.torch_dtype,
            live=[*self.live.values()],
            shards=[p.shard for p in found.values()],
        )
        self._packed = packed_layers(runner.get_model(), self.live.values())
        self._stale = True
        self._adapters: list[int] = []
        self.center.on_change(self._changed)
        self.repack_if_stale()

    def _changed(self) -> None:
        self._stale = True

    def repack_if_stale(self) -> None:
        """Pack vLLM's weights again, where they are packed, if they have changed."""
        if self._stale:
            pack(self._packed)
            self._stale = False

    # --- members ------------------------------------------------------------------------------------------------------

    def set_members(self, members: Sequence[Member]) -> list[int]:
        """Prepare vLLM's model for rows of these members; returns the adapter of each row (0: none)."""
        if not isinstance(self.center, LoRAMembers):
            self.center.set_members(members)
        self.repack_if_stale()
        return self._load_adapters(self.center, members) if isinstance(self.center, LoRAMembers) else [0] * len(members)

    def show_base(self) -> None:
        """Write the base model's weights into the live ones, until `show_center`."""
        self.center.show_base()
        self.repack_if_stale()

    def set_sigma(self, sigma: float) -> None:
        self.center.restore()
        self.center.sigma = sigma
        self._adapters = []

    def _load_adapters(self, center: LoRAMembers, members: Sequence[Member]) -> list[int]:
        """Load members as LoRA adapters in memory: lora_A = B^T [r, in], lora_B = sigma * sign * A / sqrt(r) [out, r].

        The center among members is an adapter of zeros: on a CPU, vLLM applies another row's to rows without one.
        """
        distinct = [m for m in dict.fromkeys(members) if m != CENTER]
        if not distinct:
            return [0] * len(members)
        ids = {m: 1 + m.iteration * 2**16 + m.index for m in distinct}
        center_id = (distinct[0].iteration + 1) * 2**16
        wanted = [*ids.values(), *([center_id] if CENTER in members else [])]
        if wanted != self._adapters:
            self._adapters = []
            manager = self.runner.lora_manager._adapter_manager
            manager.remove_all_adapters()
            pairs = list(dict.fromkeys((m.iteration, m.pair) for m in distinct))
            factors = center.whole_factors([spec.member_key(center.seed, *pair) for pair in pairs])
            for m in distinct:
                k, scale = pairs.index((m.iteration, m.pair)), m.sign * center.sigma
                manager.add_adapter(self._adapter(ids[m], center.rank, factors, k, scale))
            if CENTER in members:
                manager.add_adapter(self._adapter(center_id, center.rank, factors, 0, 0.0))
            self._adapters = wanted
        return [center_id if m == CENTER else ids[m] for m in members]

    def _adapter(self, number: int, rank: int, factors: Mapping[str, Any], k: int, scale: float) -> LoRAModel:
        """The adapter of pair `k` of the factors, which are given by the names of weights."""
        tensors = {}
        for name, f in factors.items():
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.from_numpy(f.b_K[k])
            tensors[f"{layer}.lora_B.weight"] = torch.from_numpy(f.a_K[k]) * (scale * float(f.scale))
        config = PEFTHelper(r=rank, lora_alpha=rank, target_modules="all-linear")
        rename = {} if (mapper := name_mapper(self.runner.get_model())) is None else {"weights_mapper": mapper}
        dtype = self.runner.lora_config.lora_dtype
        return LoRAModel.from_lora_tensors(number, tensors, config, "cpu", dtype, **rename)

    def without_adapter(self) -> list[str]:
        """Parameters in scope that vLLM's adapters cannot have."""
        if not isinstance(self.center, LoRAMembers):
            return []
        packed = getattr(self.runner.get_model(), "packed_modules_mapping", {})
        adapted = set()
        for name in self.runner.lora_manager._adapter_manager.modules:
            stem, _, last = name.rpartition(".")
            adapted |= {f"{stem}.{part}" for part in packed.get(last, [last])}
        return [n for n in self.center.names if n.removesuffix(".weight") not in adapted]

    # --- what the engine joins from all workers -----------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Names, ids and shards of the parameters that move; what was skipped, with why; remarks for the user; and
        whether the base was kept.
        """
        c = self.center
        return {
            "scope": [*zip(c.names, c.ids, c.shards, strict=True)],
            "moved": c.num_perturbed,
            "left_out": self.skipped,
            "remarks": c.master.remarks,
            "keeps_base": c.keeps_base,
        }

    def live_shard(self, name: str) -> torch.Tensor:
        """A copy of vLLM's weights for a Hugging Face parameter."""
        return self.live[name].detach().cpu().clone()

    def center_shard(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The shard of a parameter of the center that is here, rounded once, on the CPU."""
        return self.center.parameter(name, dtype)

    def state_keys(self) -> list[str]:
        return [*self.center.state()]

    def state_shard(self, key: str) -> torch.Tensor:
        """The shard of one tensor of the state that is here, on the CPU: a GPU has no room for another's."""
        return self.center.state()[key].cpu()

    def stage_state(self, file: Path) -> str | None:
        """Read this worker's shards of a saved state of the whole model, for `commit_state`; their digest, or None."""
        try:
            self._staged = self.center.shard_state(read_state(file))
        except (OSError, SafetensorError, KeyError):
            return None
        return self.center.state_digest(self._staged)

    def commit_state(self, steps: int | None) -> None:
        """Load the staged state, as it was after `steps` updates; None: discard it."""
        if steps is not None:
            self.center.load_state(self._staged, steps)
        self._staged = {}


def _copy_shard(whole: torch.Tensor, shard: Shard) -> torch.Tensor:
    """The shard in memory of its own, so that the rest can be freed."""
    return whole if shard.whole else shard.slice_of(whole).clone()
