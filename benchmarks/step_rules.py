"""What `learning_rate: auto` makes of noisy reliabilities: a simulation of rules for the r of a step.

    python benchmarks/step_rules.py

A quadratic bowl of 50 directions whose optimum is 0.5 nats per token away; 32 pairs with two prompts each, whose
effects have reliability r at one prompt (heavy-tailed noise, Student's t with 3 degrees, that shrinks with the signal).
Printed: the gap that is left after 6 and 12 iterations (1: all), and for rewards that are noise alone the KL after 12,
30 and 60. 200 runs each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from seedtune.es.reliability import PRIOR, Pooled
from seedtune.es.step_size import StepSize, most_of_a_step

DIRECTIONS, PAIRS, PROMPTS = 50, 32, 2
KL_MEMBER, KL_OPTIMUM, MAX_KL = 0.2, 0.5, 1.0
RUNS = 200

Rule = Callable[[Pooled, int], float]


def with_prior(iterations: float, errors_below: float = 0.0, decay: float = 1.0) -> Rule:
    """The prior weighs so many iterations, at first; r is so many standard errors below."""

    def rule(pooled: Pooled, t: int) -> float:
        weight = iterations * PAIRS * decay ** (t - 1)
        known = pooled.b / (pooled.b + weight)
        return (pooled.a + weight * PRIOR) / (pooled.b + weight) - errors_below * known * pooled.error

    return rule


RULES: dict[str, Rule] = {
    "prior 1, fading, half an error below": with_prior(1, 0.5, 0.9),
    "prior 1, fading": with_prior(1, 0.0, 0.9),
    "prior 2": with_prior(2),
    "prior 3": with_prior(3),
    "prior 4": with_prior(4),
    "prior 4, a quarter of an error below": with_prior(4, 0.25),
    "0.3, whatever is measured": lambda pooled, t: 0.3,
}


def run(random: np.random.Generator, r1: float, iterations: int, rule: Rule) -> tuple[float, float]:
    """The gap that is left, and KL per token from the start."""
    optimum = random.standard_normal(DIRECTIONS)
    optimum *= np.sqrt(KL_OPTIMUM / KL_MEMBER * DIRECTIONS) / np.linalg.norm(optimum) if r1 else 0.0
    center, size, pooled = np.zeros(DIRECTIONS), StepSize(KL_MEMBER), Pooled()
    first = float(optimum @ optimum)
    for t in range(1, iterations + 1):
        noise_K = random.standard_normal((PAIRS, DIRECTIONS))
        gradient = optimum - center if r1 else np.zeros(DIRECTIONS)
        signal = float(gradient @ gradient)
        noise = np.sqrt(signal * (1 - r1) / r1) if r1 else 1.0
        odd_K_P = (noise_K @ gradient)[:, None] + noise * random.standard_t(3, (PAIRS, PROMPTS)) / np.sqrt(3)
        pooled = pooled.add(odd_K_P)
        mean_K = odd_K_P.mean(axis=1)
        coefficients_K = (mean_K / np.sqrt(np.mean(mean_K**2)) / PAIRS).astype(np.float32)
        r = rule(pooled, t)
        alpha = size.learning_rate(coefficients_K, PAIRS, r, most_of_a_step(iterations))
        center = center + alpha * (coefficients_K @ noise_K)
        kl = KL_MEMBER * float(center @ center) / DIRECTIONS
        size = dataclasses.replace(size.after(PAIRS, r, 0.0, 0.0, kl / MAX_KL), ratio=1.0)
    left = float((optimum - center) @ (optimum - center)) / first if first else np.nan
    return left, kl


def main() -> None:
    signals = (0.05, 0.1, 0.18, 0.3, 0.5)
    head = ["rule", *(f"r {r:g}: {t}" for r in signals for t in (6, 12)), *(f"noise: {t}" for t in (12, 30, 60))]
    print("| " + " | ".join(head) + " |\n| " + " | ".join(["---"] * len(head)) + " |")
    for name, rule in RULES.items():
        cells = []
        for r, t in [*((r, t) for r in signals for t in (6, 12)), *((0.0, t) for t in (12, 30, 60))]:
            random = np.random.default_rng(5)
            found = np.array([run(random, r, t, rule) for _ in range(RUNS)])
            cells.append(f"{found[:, 0 if r else 1].mean():.2f}")
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
