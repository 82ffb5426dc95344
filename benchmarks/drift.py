"""What `restore: subtract` leaves behind in bfloat16 weights, against one update, at the paper's settings.

30 members of sigma 0.001 are added and subtracted again on SmolLM2-135M; the root mean square of what the weights then
differ by is set against the root mean square of one update (z-scored normal rewards, learning rate 5e-4, applied to
a float32 master). With `restore: exact` the drift is 0, and this checks it.
"""

from __future__ import annotations

import numpy as np
import torch

from common import arguments, report
from seedtune.engines import loading
from seedtune.engines.specs import ModelSpec
from seedtune.es.population import Population
from seedtune.perturb.full_rank import FullRank
from seedtune.perturb.perturbation import PerturbationSpec
from seedtune.perturb.selection import select


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().float().ravel() for p in model.parameters()])


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def drift(restore: str) -> float:
    model, _ = loading.load(ModelSpec(loading.EMBEDDED))
    before = flat(model)
    spec = PerturbationSpec(seed=1, sigma=0.001, restore=restore)
    perturber = FullRank(select(model, spec).parameters, spec, torch.bfloat16)
    for member in Population(30).ask(1):
        perturber.perturb(member)
    perturber.restore()
    return rms(flat(model) - before)


def one_update() -> float:
    model, _ = loading.load(ModelSpec(loading.EMBEDDED))
    spec = PerturbationSpec(seed=1, sigma=0.001)
    perturber = FullRank(select(model, spec).parameters, spec, torch.bfloat16)
    fitness = np.random.default_rng(0).standard_normal(30)
    fitness = (fitness - fitness.mean()) / fitness.std()
    norm = perturber.update(Population(30).ask(1), (fitness / 30).astype(np.float32), 5e-4)
    return norm / perturber.num_perturbed**0.5


if __name__ == "__main__":
    args = arguments(__doc__)
    lossy, exact, update = drift("subtract"), drift("exact"), one_update()
    report(
        {
            "drift_rms_subtract": lossy,
            "drift_rms_exact": exact,
            "update_rms": update,
            "drift_over_update": lossy / update,
        },
        args.json,
    )
