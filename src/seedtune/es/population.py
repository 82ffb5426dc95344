"""Who is evaluated in an iteration. Algorithm 1 of Qiu et al. (arXiv 2509.24372), line "sample noise"."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One perturbed model: theta + sigma * sign * noise(iteration, pair)."""

    iteration: int
    index: int
    pair: int
    sign: int


@dataclass(frozen=True)
class Population:
    """`size` members an iteration. Antithetic (mirrored) members come in pairs: same noise, opposite signs.

    Mirrored sampling: Brockhoff et al., PPSN XI 2010; Salimans et al., arXiv 1703.03864, section 2.1.
    """

    size: int
    antithetic: bool = False

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"a population needs at least 2 members to compare, got {self.size}")
        if self.antithetic and self.size % 2:
            raise ValueError(f"antithetic members come in pairs, so the population must be even, got {self.size}")

    def ask(self, iteration: int) -> list[Member]:
        """The members of `iteration`, in the order in which everything sums over them."""
        if not self.antithetic:
            return [Member(iteration, n, pair=n, sign=1) for n in range(self.size)]
        return [Member(iteration, n, pair=n // 2, sign=1 - 2 * (n % 2)) for n in range(self.size)]
