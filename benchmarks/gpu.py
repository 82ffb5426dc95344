"""Noise on a GPU: bits against the CPU's first, then times. `--device cpu --elements 1e6` tries it without one.

For float32 masters of `--elements` weights, in matrices 4,096 wide, and their bfloat16 copies; by the Triton kernels,
where they are used, and by torch's own operations:

* perturb_over_copy: bytes per second of writing a member (4 read and 2 written per weight), over those of a copy
  between tensors of the device (2 read and 2 written per weight). Higher is better.
* perturb_over_plain, update_over_plain: seconds of torch's own way (`torch.randn` per parameter, scaled and added; 30
  of them for an update) over ours. Higher is better.
* ..._torch: the same, by torch's own operations instead of the kernels. lowrank_...: of a rank-1 update.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch

from common import median_seconds, report
from seedtune.noise import cpu, spec, torch_ops
from seedtune.noise.cpu import WHOLE, Factors, Step, low_rank_factors
from seedtune.perturb.master import as_weights

MEMBERS = [spec.member_key(seed=1, iteration=2, pair=n) for n in range(30)]
COEFFICIENTS = np.linspace(-1, 1, 30).astype(np.float32)
NONE = torch.empty(0)
WIDE = 4096


class Weighed:
    """Matrices on a device, walked through as `perturb.master.DeviceMaster` does."""

    def __init__(self, elements: int, device: torch.device) -> None:
        self.device, self.rows = device, max(1, min(elements, 1 << 26) // WIDE)
        count = max(1, elements // (self.rows * WIDE))
        self.masters = [torch.randn(self.rows * WIDE, device=device) for _ in range(count)]
        self.live = [torch.empty_like(m, dtype=torch.bfloat16) for m in self.masters]
        self.source = torch.randn(len(self.live[0]), device=device).to(torch.bfloat16)
        self.ranges = torch_ops.ranges([len(m) for m in self.masters], [WHOLE] * count)

    def perturb(self) -> None:
        for n, a, b in self.ranges:
            torch_ops.perturb(self.live[n][a:b], self.masters[n][a:b], 0.001, MEMBERS[0], n, a)

    def perturb_plainly(self) -> None:
        for live, master in zip(self.live, self.masters, strict=True):
            live.copy_(torch.randn_like(master).mul_(0.001).add_(master))

    def update(self, factors: Factors | None = None) -> None:
        for n, a, b in self.ranges:
            how = {"start": a, "factors": factors}
            torch_ops.update(self.masters[n][a:b], MEMBERS, COEFFICIENTS, n, Step(1e-9), NONE, NONE, **how)

    def update_plainly(self) -> None:
        for master in self.masters:
            for c in COEFFICIENTS.tolist():
                master.add_(torch.randn_like(master), alpha=c * 1e-9)

    def copy(self) -> None:
        for live in self.live:
            live.copy_(self.source)

    def seconds(self, work: Callable[..., None], *args: Factors, rounds: int = 5) -> float:
        def done() -> None:
            work(*args)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return median_seconds(done, rounds)


def same_bits(device: torch.device, start: int, size: int) -> bool:
    """A member and an update of 30 by the device, against the CPU's kernels."""
    here, there = torch.randn(size), torch.empty(size, dtype=torch.bfloat16)
    out = torch.empty(size, dtype=torch.bfloat16, device=device)
    cpu.perturb(as_weights(there), as_weights(here), 0.001, MEMBERS[0], 3, start)
    torch_ops.perturb(out, here.to(device), 0.001, MEMBERS[0], 3, start)
    ours = here.clone().to(device)
    empty = NONE.numpy()
    cpu.update(as_weights(here), MEMBERS, COEFFICIENTS, 3, Step(0.1), empty, empty, start=start)
    torch_ops.update(ours, MEMBERS, COEFFICIENTS, 3, Step(0.1), NONE, NONE, start=start)
    return torch.equal(out.cpu(), there) and torch.equal(ours.cpu(), here)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--elements", default=1e9, type=float, help="weights (6 bytes each, and as much again to work)")
    parser.add_argument("--json", metavar="FILE", help="also write the results to FILE")
    args = parser.parse_args()
    if why := torch_ops.noise_sums(args.device).fallback_reason:
        print(f"The kernels are not used: {why}.")
    results = {"kernels_used": float(torch_ops.noise_sums(args.device).full is not torch_ops.TORCH_SUMS.full)}
    if not all(same_bits(args.device, *run) for run in ((0, 3 * WIDE), (5, 3 * WIDE + 77))):
        raise SystemExit("The bits of this device are not the CPU's: no times are taken.")
    it = Weighed(int(args.elements), args.device)
    copied, plain, plain_update = it.seconds(it.copy), it.seconds(it.perturb_plainly), it.seconds(it.update_plainly)
    factors = low_rank_factors(MEMBERS, 1, (it.rows, WIDE), 1)
    for suffix, which in (("", torch_ops.noise_sums(args.device)), ("_torch", torch_ops.TORCH_SUMS)):
        with patch.object(torch_ops, "noise_sums", return_value=which):
            perturbed, updated = it.seconds(it.perturb), it.seconds(it.update, rounds=2)
            low_rank = it.seconds(it.update, factors, rounds=2)
        results[f"perturb_over_copy{suffix}"] = (6 / perturbed) / (4 / copied)
        results[f"perturb_over_plain{suffix}"] = plain / perturbed
        results[f"update_over_plain{suffix}"] = plain_update / updated
        results[f"lowrank_update_over_plain{suffix}"] = plain_update / low_rank
    report(results, args.json)
