"""What runs inside vLLM's worker: theta, its noise and its updates. Members, seeds and scalars come in, never weights.

Beside vLLM's model stands its twin, a replica on transformers on the host: it holds the master, draws the noise by
Hugging Face name and index, and applies updates, so all bits are those of the other engine. vLLM's weights follow the
twin's: whole tensors, or rows of fused ones (`qkv_proj` is q, k and v, `gate_up_proj` gate and up).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.layers import utils as vllm_layers

from ..errors import ModelError
from ..es.population import Member
from ..noise import spec
from ..perturb.lowrank import LowRank
from . import models
from .base import Completion, Prompt
from .hf import DTYPES, HFEngine

_pack = vllm_layers.dispatch_cpu_unquantized_gemm


@wraps(_pack)
def _pack_and_keep(layer: nn.Module, remove_weight: bool) -> None:
    """On a CPU vLLM packs weights and empties the tensors that they came from; here they stay, to be written to."""
    _pack(layer, remove_weight=False)


vllm_layers.dispatch_cpu_unquantized_gemm = _pack_and_keep


class WorkerExtension:
    """Mixed into vLLM's worker by its `worker_extension_cls`; called by `collective_rpc`."""

    model_runner: Any

    def seedtune_begin(self, name: str, load: Mapping[str, Any], how: Mapping[str, Any]) -> None:
        """Make the twin. Raises ModelError when the twin's parameters are not all found in vLLM's model."""
        model, tokenizer = models.load(name, **{**load, "dtype": DTYPES[load["dtype"]]})
        self.seedtune_twin = Twin(HFEngine(model, tokenizer, name=name, device="cpu", **how), self.model_runner)

    def seedtune_do(self, method: str, *args: Any) -> Any:
        """A method of `Twin`, or of its engine."""
        twin = self.seedtune_twin
        return getattr(twin if hasattr(twin, method) else twin.engine, method)(*args)

    def seedtune_get(self, attribute: str) -> Any:
        return getattr(self.seedtune_twin.engine, attribute)


class Twin:
    """A replica on transformers that vLLM's model follows."""

    def __init__(self, engine: HFEngine, runner: Any) -> None:
        self.engine, self.runner = engine, runner
        model = runner.get_model()
        self.places = places(dict(engine.model.named_parameters()), engine.centre.names, model)
        self.packed = [
            m for m in model.modules() if hasattr(m, "cpu_linear") and getattr(m, "weight", None) is not None
        ]
        self._stale = False
        self._adapters: list[int] = []
        engine.centre.watch(self._changed)

    def _changed(self) -> None:
        self._stale = True

    # --- members ------------------------------------------------------------------------------------------------------

    def seat(self, members: Sequence[Member | None]) -> list[int]:
        """Make vLLM's model ready for rows that these members answer; the adapter of each row (0: none)."""
        if isinstance(self.engine.centre, LowRank):
            self.engine.restore()
            self.follow()
            return self._load_adapters(self.engine.centre, members)
        self.engine.become(members)
        self.follow()
        return [0] * len(members)

    def follow(self) -> None:
        """Bring vLLM's weights to the twin's, and pack them anew where they are packed."""
        if not self._stale:
            return
        live = dict(self.engine.model.named_parameters())
        for name, place in self.places.items():
            place.copy_(live[name].data)
        for layer in self.packed:
            _pack(layer, remove_weight=False)
        self._stale = False

    def _load_adapters(self, centre: LowRank, members: Sequence[Member | None]) -> list[int]:
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
            manager = self.runner.lora_manager._adapter_manager
            manager.remove_all_adapters()
            pairs = list(dict.fromkeys((m.iteration, m.pair) for m in who))
            factors = dict(
                zip(centre.names, centre.factors([spec.member_key(centre.seed, *pair) for pair in pairs]), strict=True)
            )
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
        rename = {} if (mapper := _renaming(self.runner.get_model())) is None else {"weights_mapper": mapper}
        dtype = self.runner.lora_config.lora_dtype
        return LoRAModel.from_lora_tensors(number, tensors, how, "cpu", dtype, **rename)

    # --- checks -------------------------------------------------------------------------------------------------------

    def not_carried(self) -> list[str]:
        """Names in scope that an adapter cannot carry."""
        model = self.runner.get_model()
        packed = getattr(model, "packed_modules_mapping", {})
        held = set()
        for name in self.runner.lora_manager._adapter_manager.modules:
            stem, _, last = name.rpartition(".")
            held |= {f"{stem}.{part}" for part in packed.get(last, [last])}
        return [n for n in self.engine.centre.names if n.removesuffix(".weight") not in held]

    def held(self, name: str) -> torch.Tensor:
        """What vLLM's model holds for a Hugging Face parameter now."""
        return self.places[name].detach().clone()

    # --- with arguments by position, as remote calls have them --------------------------------------------------------

    def read(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], temperature: float, base: bool
    ) -> list[NDArray[np.float64]]:
        """As the engine's `logprobs`. The twin reads, on the host: exact, and slow for a large model."""
        return self.engine.logprobs(prompts, completions, temperature, base=base)


def places(parameters: Mapping[str, nn.Parameter], moving: Sequence[str], model: nn.Module) -> dict[str, torch.Tensor]:
    """Where in vLLM's model each of `moving` lives, by Hugging Face name: a tensor, or rows of a fused one.

    Proven by content: a place must hold what the checkpoint holds under that name. Raises ModelError that names the
    parameters for which there is none.
    """
    held = {name.replace(".base_layer.", "."): p for name, p in model.named_parameters()}
    mapper = _renaming(model)
    found, missing = {}, []
    for name in moving:
        own = parameters[name].data
        place = _place(name if mapper is None else mapper._map_name(name) or name, own, parameters, name, held, model)
        if place is None or not torch.equal(place.to("cpu", own.dtype), own.to(place.dtype).to("cpu", own.dtype)):
            missing.append(name)
        else:
            found[name] = place
    if missing:
        raise ModelError(
            f"vLLM's {type(model).__name__} does not hold {len(missing)} of {len(moving)} parameters where they are "
            f"expected: {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}. Use engine: hf, or a scope "
            "without them."
        )
    return found


def _renaming(model: nn.Module) -> Any:
    """vLLM's mapping of Hugging Face names to its own, without what it says of stacking; None: they are the same."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return None if mapper is None else mapper.get_rename_mapper()


def _place(
    mapped: str,
    own: torch.Tensor,
    parameters: Mapping[str, nn.Parameter],
    name: str,
    held: Mapping[str, nn.Parameter],
    model: nn.Module,
) -> torch.Tensor | None:
    if mapped in held:
        whole = held[mapped].data
        return whole[: len(own)] if whole.shape[1:] == own.shape[1:] and len(whole) >= len(own) else None
    for fused, parts in getattr(model, "packed_modules_mapping", {}).items():
        for n, part in enumerate(parts):
            if f".{part}." not in mapped or (whole_name := mapped.replace(f".{part}.", f".{fused}.")) not in held:
                continue
            before = [parameters.get(name.replace(f".{part}.", f".{other}.")) for other in parts[:n]]
            if any(p is None for p in before):
                continue
            start = sum(len(p) for p in before if p is not None)
            return held[whole_name].data[start : start + len(own)]
    return None
