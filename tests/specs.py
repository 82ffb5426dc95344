"""Specs from loose options, as tests like to give them."""

from __future__ import annotations

import dataclasses

from seedtune.engines.specs import ModelSpec, RuntimeSpec
from seedtune.perturb.perturbation import PerturbationSpec
from seedtune.perturb.selection import select


def perturbation(rank=None, **options):
    """Low rank where there is a rank."""
    low_rank = {} if rank is None else {"perturbation": "lowrank", "rank": rank}
    return PerturbationSpec(**low_rank, **options)


def specs(**options):
    """The three specs of an engine, from options of any of them."""
    names = [{f.name for f in dataclasses.fields(cls)} for cls in (ModelSpec, RuntimeSpec)]
    model, runtime = ({k: v for k, v in options.items() if k in some} for some in names)
    rest = {k: v for k, v in options.items() if k not in model and k not in runtime}
    return ModelSpec(**{"model_name_or_path": "tiny", **model}), perturbation(**rest), RuntimeSpec(**runtime)


def low_rank_selection(model, scope, rank=1, **options):
    return select(model, perturbation(rank, scope=scope, **options))
