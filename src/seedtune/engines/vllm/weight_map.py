"""Where vLLM's model holds a parameter: in a tensor of its own, or in rows of a fused one; all of it, or this device's
shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ModelError
from ...perturb.shard import Shard


@dataclass(frozen=True)
class WeightLocation:
    """The shard of a parameter that is on this device, and the view of vLLM's memory that holds it."""

    live: torch.Tensor
    shard: Shard

    def holds(self, weight: torch.Tensor) -> bool:
        """Whether the values there are the shard of this whole parameter, as the checkpoint has it."""
        expected = self.shard.slice_of(weight)
        return self.live.shape == expected.shape and torch.equal(self.live.cpu(), expected.to("cpu", self.live.dtype))


def locate_weights(
    parameters: Mapping[str, nn.Parameter], moving: Sequence[str], model: nn.Module, rank: int = 0, world: int = 1
) -> dict[str, WeightLocation]:
    """Where each of `moving` is, by Hugging Face name, on device `rank` of `world`.

    Checked by content: a location must hold what the checkpoint holds under that name. Raises ModelError that names
    the parameters without one.
    """
    tensors = {name.replace(".base_layer.", "."): p.data for name, p in model.named_parameters()}
    fused, mapper = getattr(model, "packed_modules_mapping", {}), name_mapper(model)
    found, missing = {}, []
    has_copies = any(hasattr(m, "W_UK_T") or hasattr(m, "W_UV") for m in model.modules())
    if has_copies and (copies := [name for name in moving if ".kv_b_proj." in name]):
        raise ModelError(
            f"vLLM's {type(model).__name__} computes with copies of {len(copies)} parameters that it made on loading "
            f"({copies[0]}, ...: multi-head latent attention): noise would not reach them. Use engine: hf, or a scope "
            "without them."
        )
    for name in moving:
        mapped = name if mapper is None else mapper._map_name(name) or name
        weight = parameters[name].data
        candidates = _in_fused(mapped, name, parameters, fused, tensors, rank, world)
        if mapped in tensors:
            candidates = iter([_alone(weight, tensors[mapped], rank)])
        if location := next((c for c in candidates if c.holds(weight)), None):
            found[name] = location
        else:
            missing.append(name)
    if missing:
        raise ModelError(
            f"vLLM's {type(model).__name__} does not hold {len(missing)} of {len(moving)} parameters where they are "
            f"expected: {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}. Use engine: hf, or a scope "
            "without them."
        )
    return found


def name_mapper(model: nn.Module) -> Any:
    """vLLM's mapping of Hugging Face names to its own, without its stacking of layers; None: the names are the same."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return None if mapper is None else mapper.get_rename_mapper()


def _alone(weight: torch.Tensor, tensor: torch.Tensor, rank: int) -> WeightLocation:
    """In a tensor of its own: whole on every device (maybe with padding rows), or sharded along the dimension that is
    shorter; of a vocabulary, the last devices may hold less.
    """
    dim = next((d for d, (t, w) in enumerate(zip(tensor.shape, weight.shape, strict=False)) if t < w), None)
    if dim is None:
        return WeightLocation(tensor[: len(weight)], Shard(tuple(weight.shape), counted=rank == 0))
    start = min(rank * tensor.shape[dim], weight.shape[dim])
    size = min(tensor.shape[dim], weight.shape[dim] - start)
    return WeightLocation(tensor.narrow(dim, 0, size), Shard(tuple(weight.shape), dim, start, size))


def _in_fused(
    mapped: str,
    name: str,
    parameters: Mapping[str, nn.Parameter],
    fused: Mapping[str, Sequence[str]],
    tensors: Mapping[str, torch.Tensor],
    rank: int,
    world: int,
) -> Iterator[WeightLocation]:
    """Rows of a fused tensor, whose parts are stacked. Where there are fewer key-value heads than devices, `copies`
    devices hold the same ones.
    """
    for fused_name, parts in fused.items():
        for n, part in enumerate(parts):
            whole = tensors.get(mapped.replace(f".{part}.", f".{fused_name}."))
            rows = [
                len(p) if (p := parameters.get(name.replace(f".{part}.", f".{o}."))) is not None else 0 for o in parts
            ]
            if f".{part}." not in mapped or whole is None or 0 in rows:
                continue
            for copies in (c for c in range(1, world + 1) if world % c == 0):
                here = [rows[0] // world, *(r * copies // world for r in rows[1:])]
                if sum(here) == len(whole):
                    same, before = copies if n else 1, sum(here[:n])
                    shape, start = tuple(parameters[name].shape), rank // same * here[n]
                    shard = Shard(shape, 0, start, here[n], counted=rank % same == 0)
                    yield WeightLocation(whole[before : before + here[n]], shard)
