"""Schedules: how the learning rate and sigma change over a run, as factors of their first value."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


def factor(kind: str, t: int, max_steps: int, warmup_steps: int = 0) -> float:
    """The factor at iteration t = 1, 2, ..., `max_steps`: transformers' schedules of the same names, where iteration t
    is their step t - 1 behind the warm-up. In the warm-up it is t / (warmup_steps + 1), so that no iteration is spent
    on a learning rate of 0; linear ends at 1 / (max_steps - warmup_steps), cosine near 0.
    """
    if kind != "constant" and t <= warmup_steps:
        return t / (warmup_steps + 1)
    part = min((t - 1 - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    if kind == "linear":
        return 1.0 - part
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * part))
    return 1.0
