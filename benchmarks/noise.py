"""Noise against torch.randn, and a member's perturbation against generating its completions in the demo's setting.

* noise_over_randn: seconds of `torch.randn(n)` over seconds of the noise stream for n normals (higher is better).
* perturb_over_generate: seconds of perturbing and restoring SmolLM2-135M over seconds of its completions of
  four prompts, up to 48 tokens, as in the demo (lower is better).
"""

from __future__ import annotations

import numpy as np
import torch

from common import arguments, median_seconds, report
from seedtune.engines import loading
from seedtune.engines.base import Sampling
from seedtune.engines.hf.engine import HFEngine
from seedtune.engines.specs import ModelSpec, RuntimeSpec
from seedtune.es.population import CENTER, Member
from seedtune.noise import cpu, spec
from seedtune.perturb.perturbation import PerturbationSpec
from seedtune.tasks.registry import builtin

SIZE = 1 << 26


def noise_over_randn() -> dict[str, float]:
    out = np.empty(SIZE, np.float32)
    key = spec.member_key(seed=1, iteration=2, pair=3)
    parts = cpu.ranges([SIZE])

    def ours() -> None:
        cpu.parallel(lambda _, a, b: cpu.normals(out[a:b], key, 5, spec.Purpose.FULL, a), parts)

    ours_seconds = median_seconds(ours, 9)
    randn_seconds = median_seconds(lambda: torch.randn(SIZE), 5)
    return {
        "ns_per_normal": ours_seconds / SIZE * 1e9,
        "ns_per_randn": randn_seconds / SIZE * 1e9,
        "noise_over_randn": randn_seconds / ours_seconds,
    }


def perturb_over_generate() -> dict[str, float]:
    model = ModelSpec(loading.EMBEDDED)
    engine = HFEngine(*loading.load(model), model, PerturbationSpec(sigma=0.01), RuntimeSpec(device="cpu"))
    prompts = engine.encode([row["prompt"] for row in builtin("conciseness").train[:4]], 48)
    member = Member(1, 0, 0, 1)

    def visit() -> None:
        engine.set_members([member])
        engine.set_members([CENTER])

    visit_seconds = median_seconds(visit, 9)
    engine.set_members([member] * len(prompts))
    generate_seconds = median_seconds(lambda: engine.generate(prompts, Sampling(48), 0), 5)
    members = [Member(1, n, n, 1) for n in range(6)]
    update_seconds = median_seconds(lambda: engine.update(members, np.full(6, 1e-6, np.float32), 1e-3), 5)
    return {
        "perturb_and_restore_seconds": visit_seconds,
        "generate_seconds": generate_seconds,
        "update_seconds_per_direction": update_seconds / 6,
        "perturb_over_generate": visit_seconds / generate_seconds,
    }


if __name__ == "__main__":
    args = arguments(__doc__)
    report({**noise_over_randn(), **perturb_over_generate()}, args.json)
