"""Who is evaluated in an iteration. Algorithm 1 of Qiu et al. (arXiv 2509.24372), line "sample noise"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One perturbed model: theta + sigma * sign * noise(iteration, pair)."""

    iteration: int
    index: int
    pair: int
    sign: int


#: The unperturbed model, where a row's member is asked for: no noise, whatever the sigma.
CENTER = Member(iteration=0, index=-1, pair=-1, sign=0)


@dataclass(frozen=True)
class Population:
    """`size` members per iteration. Antithetic (mirrored) members come in pairs: same noise, opposite signs.

    Mirrored sampling: Brockhoff et al., PPSN XI 2010; Salimans et al., arXiv 1703.03864, section 2.1.

    Raises ValueError for fewer than 2 members, or an odd number of antithetic ones.
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


def assign_prompts(members: Sequence[Member], num_prompts: int, per_member: int | None) -> list[tuple[int, ...]]:
    """Which of an iteration's prompts each member answers: all of them (the center always), or `per_member`. A pair
    shares its prompts; the next pair has those that follow, around and around, so that every prompt is answered equally
    often.
    """
    every = tuple(range(num_prompts))
    if per_member is None:
        return [every] * len(members)
    own = range(per_member)
    return [every if m == CENTER else tuple((m.pair * per_member + n) % num_prompts for n in own) for m in members]
