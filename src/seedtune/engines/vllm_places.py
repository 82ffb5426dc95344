"""Where in vLLM's model a parameter lives: a tensor, or rows of a fused one; all of it, or this device's shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from ..perturb.shard import Shard


@dataclass(frozen=True)
class Place:
    """What of a parameter is held here, and the memory that holds it."""

    live: torch.Tensor
    shard: Shard

    def holds(self, own: torch.Tensor) -> bool:
        """Whether that is what the checkpoint has there."""
        expected = self.shard.of(own)
        return self.live.shape == expected.shape and torch.equal(self.live.cpu(), expected.to("cpu", self.live.dtype))


def places(
    parameters: Mapping[str, nn.Parameter], moving: Sequence[str], model: nn.Module, rank: int = 0, world: int = 1
) -> dict[str, Place]:
    """Where each of `moving` lives, by Hugging Face name, on device `rank` of `world`.

    Proven by content: a place must hold what the checkpoint holds under that name. Raises ModelError that names the
    parameters for which there is none.
    """
    held = {name.replace(".base_layer.", "."): p.data for name, p in model.named_parameters()}
    packed, mapper = getattr(model, "packed_modules_mapping", {}), renaming(model)
    found, missing = {}, []
    copied = any(hasattr(m, "W_UK_T") or hasattr(m, "W_UV") for m in model.modules())
    if copied and (kept := [name for name in moving if ".kv_b_proj." in name]):
        raise ModelError(
            f"vLLM's {type(model).__name__} answers with copies that it made of {len(kept)} parameters when it loaded "
            f"({kept[0]}, ...: multi-head latent attention): noise would not reach them. Use engine: hf, or a scope "
            "without them."
        )
    for name in moving:
        mapped = name if mapper is None else mapper._map_name(name) or name
        own = parameters[name].data
        tried = _fused(mapped, name, parameters, packed, held, rank, world)
        if mapped in held:
            tried = iter([_alone(own, held[mapped], rank)])
        if place := next((p for p in tried if p.holds(own)), None):
            found[name] = place
        else:
            missing.append(name)
    if missing:
        raise ModelError(
            f"vLLM's {type(model).__name__} does not hold {len(missing)} of {len(moving)} parameters where they are "
            f"expected: {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}. Use engine: hf, or a scope "
            "without them."
        )
    return found


def renaming(model: nn.Module) -> Any:
    """vLLM's mapping of Hugging Face names to its own, without what it says of stacking; None: they are the same."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return None if mapper is None else mapper.get_rename_mapper()


def _alone(own: torch.Tensor, held: torch.Tensor, rank: int) -> Place:
    """In a tensor of its own: whole on every device (with rows to spare, maybe), or cut along the dimension that is
    shorter; of a vocabulary, the last devices may hold less.
    """
    dim = next((d for d, (h, o) in enumerate(zip(held.shape, own.shape, strict=False)) if h < o), None)
    if dim is None:
        return Place(held[: len(own)], Shard(tuple(own.shape), counts=rank == 0))
    start = min(rank * held.shape[dim], own.shape[dim])
    size = min(held.shape[dim], own.shape[dim] - start)
    return Place(held.narrow(dim, 0, size), Shard(tuple(own.shape), dim, start, size))


def _fused(
    mapped: str,
    name: str,
    parameters: Mapping[str, nn.Parameter],
    packed: Mapping[str, Sequence[str]],
    held: Mapping[str, torch.Tensor],
    rank: int,
    world: int,
) -> Iterator[Place]:
    """Rows of a fused tensor, whose parts stand one below the other. Where there are fewer heads of keys and values
    than devices, `copies` devices hold the same ones.
    """
    for fused, parts in packed.items():
        for n, part in enumerate(parts):
            whole = held.get(mapped.replace(f".{part}.", f".{fused}."))
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
                    shard = Shard(shape, 0, start, here[n], counts=rank % same == 0)
                    yield Place(whole[before : before + here[n]], shard)
