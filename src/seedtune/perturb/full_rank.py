"""Full-rank members: every weight in scope moves. Qiu et al. (arXiv 2509.24372), Algorithm 2.

A member is `round(master + sigma * sign * noise)`, written into the live model by one fused pass, so going back is
writing `round(master)`: exact, never a subtraction.

With `restore="subtract"` noise is added to the live weights and subtracted again, as in the paper's code. It needs the
least memory and it is lossy: every member leaves rounding behind (`benchmarks/drift.py` measures how much).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..es.population import CENTER, Member
from ..noise import spec
from .center import Center


class FullRank(Center):
    """One member at a time: the live weights are that member's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._member: Member | None = None
        self._is_written = True  # False while weights are written, and where that failed

    def set_members(self, members: Sequence[Member]) -> None:
        """All rows must belong to the same member: raises ValueError where they do not."""
        if any(m != members[0] for m in members):
            raise ValueError("full-rank members are visited one after another; this batch mixes them")
        if members[0] == CENTER:
            self.restore()
        else:
            self.perturb(members[0])

    def perturb(self, member: Member) -> None:
        """Make the live model `member`: theta + sigma * sign * noise."""
        if member == self._member and self._is_written:
            return
        if not self.exact:
            self.restore()
        self._member = member
        self._write(member, self.sigma * member.sign)

    def restore(self) -> None:
        """Make the live model the center again."""
        if self._member is None:
            return
        self._write(self._member, 0.0 if self.exact else -self.sigma * self._member.sign)
        self._member = None

    def detach(self) -> None:
        self.restore()

    def _write(self, member: Member, scale: float) -> None:
        self._is_written = False
        self.master.write(scale, spec.member_key(self.seed, member.iteration, member.pair))
        self._is_written = True
        self._changed()
