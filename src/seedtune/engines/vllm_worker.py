"""What runs inside vLLM's workers: theta, its noise and its updates. Members, seeds and scalars come in, never weights.

Every worker holds the master of what it serves: a model, or its shards of one ("tensor parallelism"). Noise is drawn by
Hugging Face name and index, so all bits are those of the other engine. What is written are vLLM's own weights: whole
tensors, or rows of fused ones (`qkv_proj` is q, k and v, `gate_up_proj` gate and up).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.platforms import current_platform

from ..es.population import Member
from ..noise import cpu, spec
from ..noise.cpu import Factors
from ..noise.spec import Key
from ..perturb.centre import Centre
from ..perturb.full import FullRank
from ..perturb.scope import select, select_layers
from ..perturb.shard import Shard, draw_factors
from . import models
from .hf import DTYPES
from .vllm_packing import pack, packed_layers
from .vllm_places import places, renaming
from .vllm_start import spare_numba

spare_numba()


class WorkerExtension:
    """Mixed into vLLM's worker by its `worker_extension_cls`; called by `collective_rpc`."""

    model_runner: Any

    def seedtune_begin(self, name: str, load: Mapping[str, Any], how: Mapping[str, Any]) -> None:
        """Take hold of the weights. Raises ModelError when they are not all found in vLLM's model."""
        self.seedtune = Theta(name, load, how, self.model_runner)

    def seedtune_do(self, method: str, *args: Any) -> Any:
        """A method of `Theta`, or of its centre."""
        theta = self.seedtune
        return getattr(theta if hasattr(theta, method) else theta.centre, method)(*args)


class Carried(Centre):
    """Low-rank members, which vLLM's adapters carry: the weights never leave the centre."""

    def __init__(self, *args: Any, rank: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rank = rank

    def restore(self) -> None:
        """Nothing to do: adapters are asked for row by row."""

    def factors(self, keys: list[Key]) -> Sequence[Factors | None]:
        return draw_factors(keys, self.ids, self.shards, self.rank)

    def whole_factors(self, keys: list[Key]) -> dict[str, Factors | None]:
        """Of the whole parameters, by name: vLLM itself cuts adapters to shards."""
        shards = [Shard(shard.shape) for shard in self.shards]
        return dict(zip(self.names, draw_factors(keys, self.ids, shards, self.rank), strict=True))


class Theta:
    """The centre of the model that a worker serves, or of its shards. `load` and `how` are what `models.load` and
    `HFEngine` take.
    """

    def __init__(self, name: str, load: Mapping[str, Any], how: Mapping[str, Any], runner: Any) -> None:
        self.runner = runner
        rank, world = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        if how["threads"] or world > 1:
            cores = len(os.sched_getaffinity(0))  # on a CPU, vLLM binds a worker to its own
            cpu.set_threads(how["threads"] or max(1, cores // (1 if current_platform.is_cpu() else world)))
        base, _ = models.load(name, **{**load, "dtype": DTYPES[load["dtype"]]})
        options = {name: how[name] for name in ("seed", "sigma", "noise", "rule", "keep_base")}
        options |= {"dtype": DTYPES[how["dtype"]], "master": DTYPES[how["master"]]}
        parameters, moving = dict(base.named_parameters()), [*select(base, how["scope"])]
        kind: type[Centre] = FullRank
        self.left_out: Mapping[str, str] = {}
        if how["rank"] is not None:
            layers = select_layers(base, how["scope"])
            moving, self.left_out = [*layers.found], layers.left_out
            kind, options = Carried, {**options, "rank": how["rank"]}
        found = places(parameters, moving, runner.get_model(), rank, world)
        self.places = {n: place.live for n, place in found.items()}
        self.centre = kind(
            {n: nn.Parameter(_own(parameters[n].data, p.shard), requires_grad=False) for n, p in found.items()},
            live=[*self.places.values()],
            shards=[p.shard for p in found.values()],
            **options,
        )
        self._packed = packed_layers(runner.get_model(), self.places.values())
        self._stale = True
        self._adapters: list[int] = []
        self.centre.watch(self._changed)
        self.follow()

    def _changed(self) -> None:
        self._stale = True

    def follow(self) -> None:
        """Pack vLLM's weights anew, where they are packed, after they have changed."""
        if self._stale:
            pack(self._packed)
            self._stale = False

    # --- members ------------------------------------------------------------------------------------------------------

    def seat(self, members: Sequence[Member | None]) -> list[int]:
        """Make vLLM's model ready for rows that these members answer; the adapter of each row (0: none)."""
        if not isinstance(self.centre, Carried):
            self.centre.become(members)
        self.follow()
        return self._load_adapters(self.centre, members) if isinstance(self.centre, Carried) else [0] * len(members)

    def show_base(self) -> None:
        """Be the base model, until the centre is shown."""
        self.centre.show_base()
        self.follow()

    def set_sigma(self, sigma: float) -> None:
        self.centre.restore()
        self.centre.sigma = sigma
        self._adapters = []

    def _load_adapters(self, centre: Carried, members: Sequence[Member | None]) -> list[int]:
        """Members as LoRA adapters in memory: the product of B^T [r, in] and sigma * sign * A / sqrt(r) [out, r].

        The centre among members is an adapter of zeros: on a CPU, vLLM gives rows without one another row's.
        """
        who = [m for m in dict.fromkeys(members) if m is not None]
        if not who:
            return [0] * len(members)
        ids = {m: 1 + m.iteration * 2**16 + m.index for m in who}
        of_centre = (who[0].iteration + 1) * 2**16
        wanted = [*ids.values(), *([of_centre] if None in members else [])]
        if wanted != self._adapters:
            self._adapters = []
            manager = self.runner.lora_manager._adapter_manager
            manager.remove_all_adapters()
            pairs = list(dict.fromkeys((m.iteration, m.pair) for m in who))
            factors = centre.whole_factors([spec.member_key(centre.seed, *pair) for pair in pairs])
            for m in who:
                k, scale = pairs.index((m.iteration, m.pair)), m.sign * centre.sigma
                manager.add_adapter(self._adapter(ids[m], centre.rank, factors, k, scale))
            if None in members:
                manager.add_adapter(self._adapter(of_centre, centre.rank, factors, 0, 0.0))
            self._adapters = wanted
        return [of_centre if m is None else ids[m] for m in members]

    def _adapter(self, number: int, rank: int, factors: Mapping[str, Any], k: int, scale: float) -> LoRAModel:
        """The adapter of direction `k` of the factors, by the names of weights."""
        tensors = {}
        for name, f in factors.items():
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.from_numpy(f.b_K[k])
            tensors[f"{layer}.lora_B.weight"] = torch.from_numpy(f.a_K[k]) * (scale * float(f.scale))
        how = PEFTHelper(r=rank, lora_alpha=rank, target_modules="all-linear")
        rename = {} if (mapper := renaming(self.runner.get_model())) is None else {"weights_mapper": mapper}
        dtype = self.runner.lora_config.lora_dtype
        return LoRAModel.from_lora_tensors(number, tensors, how, "cpu", dtype, **rename)

    def not_carried(self) -> list[str]:
        """Names in scope that an adapter cannot carry."""
        if not isinstance(self.centre, Carried):
            return []
        packed = getattr(self.runner.get_model(), "packed_modules_mapping", {})
        held = set()
        for name in self.runner.lora_manager._adapter_manager.modules:
            stem, _, last = name.rpartition(".")
            held |= {f"{stem}.{part}" for part in packed.get(last, [last])}
        return [n for n in self.centre.names if n.removesuffix(".weight") not in held]

    # --- what the other end puts together -----------------------------------------------------------------------------

    def described(self) -> dict[str, Any]:
        """Names, ids and shards of what moves; what was left out, with why; what the user should know; and whether the
        base was kept.
        """
        c = self.centre
        return {
            "scope": [*zip(c.names, c.ids, c.shards, strict=True)],
            "moved": c.moved,
            "left_out": self.left_out,
            "remarks": c.store.remarks,
            "keeps_base": c.keeps_base,
        }

    def held(self, name: str) -> torch.Tensor:
        """What vLLM's model holds for a Hugging Face parameter now."""
        return self.places[name].detach().cpu().clone()

    def centre_part(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """What is here of a parameter of the centre, rounded once, on the CPU."""
        return self.centre.centre(name, dtype)

    def state_keys(self) -> list[str]:
        return [*self.centre.state()]

    def state_part(self, key: str) -> torch.Tensor:
        """What is here of one tensor of the state, on the CPU: a GPU has no room for what comes from another."""
        return self.centre.state()[key].cpu()

    def offer(self, file: Path) -> str | None:
        """The digest that a saved state of the whole model would have here; `adopt` takes it over."""
        try:
            self._offered = self.centre.part_of(load_file(file))
        except (OSError, SafetensorError, KeyError):
            return None
        return self.centre.state_digest(self._offered)

    def adopt(self, steps: int | None) -> None:
        """Take over what was offered; None: forget it."""
        if steps is not None:
            self.centre.adopt(self._offered, steps)
        self._offered = {}


def _own(whole: torch.Tensor, shard: Shard) -> torch.Tensor:
    """A part in memory of its own, so that the rest can go."""
    return whole if shard.whole else shard.of(whole).clone()
