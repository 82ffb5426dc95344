"""A curriculum: which prompts an iteration has, from how often those of each level are solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..noise import spec
from .dataset import columns_of
from .prompts import Prompts

Floats = NDArray[np.float64]

#: How much an iteration counts after each later one in which its level was asked.
DECAY = 0.8
#: The share of draws of a level that is mastered, or still too hard, next to one in which there is something to learn.
REVIEW = 0.1


@dataclass(frozen=True)
class CurriculumSpec:
    """The setting `curriculum`: `column` of the dataset says how hard a row is (numbers, or texts from easy to hard as
    they appear); `success` names the reward function whose mean says how much of a level is solved (default: the
    last). The first iteration asks all levels, and closes those behind the last that is solved to `low`. Levels between
    `low` and `high` are asked most; when more than `high` of the hardest open level is solved, the next is opened.
    """

    column: str
    success: str | None = None
    low: float = 0.1
    high: float = 0.6

    @staticmethod
    def of(setting: Mapping[str, Any]) -> CurriculumSpec:
        """Raises ConfigError for a mapping that is no such setting."""
        known = [f.name for f in fields(CurriculumSpec)]
        if wrong := [key for key in setting if key not in known]:
            raise ConfigError(f"curriculum: there is no {wrong[0]!r}; it has: {', '.join(known)}.")
        if not isinstance(setting.get("column"), str):
            raise ConfigError("curriculum: column is missing: name the column that says how hard a row is.")
        made = CurriculumSpec(**setting)
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (made.low, made.high))
        if not numbers or not made.low < made.high:
            raise ConfigError(f"curriculum: low and high are numbers, low < high; got {made.low!r}, {made.high!r}.")
        if not isinstance(made.success, str | None):
            raise ConfigError(f"curriculum: success names a reward function, got {made.success!r}.")
        return made


class Curriculum:
    """Draws rows by level. `column` holds the level of every row; `names` are all levels, from easy to hard.

    The state (`state`, `load_state`) is numbers by name: how many levels are open, and of each how many rows were drawn
    so far and two sums, from which its success follows. With the seed they decide all that is drawn later.
    """

    def __init__(self, column: Sequence[Any], setting: CurriculumSpec, seed: int) -> None:
        self.setting, self.seed = setting, seed
        self.names = _levels(column, setting.column)
        place = {name: level for level, name in enumerate(self.names)}
        self._level_of_row = np.array([place[value] for value in column])
        self._rows = [np.flatnonzero(self._level_of_row == level) for level in range(len(self.names))]
        self.open = len(self.names)
        self._drawn = [0] * len(self.names)
        self._solved = [0.0] * len(self.names)
        self._asked = [0.0] * len(self.names)

    @classmethod
    def of(
        cls, setting: Mapping[str, Any], prompts: Prompts, rewards: Sequence[str], seed: int, prompts_per_member: int
    ) -> Curriculum:
        """The curriculum that a setting describes, over training `prompts`. `rewards` are the names of the reward
        functions. Raises ConfigError, DataError.
        """
        asked = CurriculumSpec.of(setting)
        if asked.success not in (None, *rewards):
            raise ConfigError(
                f"curriculum: success is {asked.success!r}; the reward functions are {', '.join(rewards)}."
            )
        if not prompts.prompts_per_step:
            raise ConfigError("curriculum: how many prompts shall an iteration have? Set prompts_per_step.")
        if asked.column not in (known := columns_of(prompts.train)):
            raise DataError(
                f"curriculum: the dataset has no column {asked.column!r}; its columns are: {', '.join(known)}."
            )
        made = cls([row[asked.column] for row in prompts.train], asked, seed)
        if (smallest := min(map(len, made._rows))) < prompts_per_member:
            raise ConfigError(
                f"curriculum: a level has {smallest} rows, fewer than prompts_per_member ({prompts_per_member}): lower "
                "it, or add rows."
            )
        return made

    def success(self, level: int) -> float | None:
        """How much of a level was solved of late; None: it was not asked yet."""
        return self._solved[level] / self._asked[level] if self._asked[level] else None

    def shares(self) -> list[float]:
        """What part of an iteration's prompts each level has."""
        low, high = self.setting.low, self.setting.high
        known = [self.success(level) for level in range(self.open)]
        weights = [1.0 if s is None or low <= s <= high else REVIEW for s in known]
        if 1.0 not in weights:  # nothing is in between: the level that is nearest to it
            distance = [max(low - s, s - high) for s in known if s is not None]
            weights[distance.index(min(distance))] = 1.0
        return [w / sum(weights) for w in weights] + [0.0] * (len(self.names) - self.open)

    def draw(self, count: int, block: int = 1) -> list[int]:
        """Rows of the next iteration, `count` or fewer: of each level the next ones of its own shuffle. Blocks of
        `block` rows are of one level, if `count` is a multiple of it: the prompts of one member, which are alike then.
        """
        rows: list[int] = []
        block = block if count % block == 0 else 1
        for level, blocks in enumerate(_whole(self.shares(), count // block)):
            share = blocks * block
            size = len(self._rows[level])
            turns = range(self._drawn[level], self._drawn[level] + min(share, size))
            rows += [int(self._rows[level][spec.permutation(self.seed, n // size, size)[n % size]]) for n in turns]
        return rows

    def after(self, rows: Sequence[int], success_P: Floats) -> None:
        """What was asked, and how much of each prompt was solved (NaN: not known)."""
        is_first = not any(self._asked)
        levels_P = self._level_of_row[list(rows)]
        for level in np.unique(levels_P):
            of_level = success_P[levels_P == level]
            self._drawn[level] += len(of_level)
            known = of_level[~np.isnan(of_level)]
            if known.size:
                self._solved[level] = DECAY * self._solved[level] + float(known.sum())
                self._asked[level] = DECAY * self._asked[level] + len(known)
        if is_first and any(self._asked):
            reached = [(self.success(level) or 0.0) >= self.setting.low for level in range(len(self.names))]
            self.open = max(1, (*reached, False).index(False))
        hardest = self.success(self.open - 1)
        if hardest is not None and hardest > self.setting.high and self.open < len(self.names):
            self.open += 1

    def metrics(self) -> dict[str, float]:
        """How many levels are open, and how much of each was solved of late."""
        known = {f"curriculum/{name}": self.success(level) for level, name in enumerate(self.names)}
        return {"curriculum/open": float(self.open), **{name: s for name, s in known.items() if s is not None}}

    def state(self) -> dict[str, float]:
        found = {"curriculum_open": float(self.open)}
        for level in range(len(self.names)):
            found[f"curriculum_{level}_drawn"] = float(self._drawn[level])
            found[f"curriculum_{level}_solved"] = self._solved[level]
            found[f"curriculum_{level}_asked"] = self._asked[level]
        return found

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from a state that an iteration recorded."""
        self.open = int(state["curriculum_open"])
        levels = range(len(self.names))
        self._drawn = [int(state[f"curriculum_{level}_drawn"]) for level in levels]
        self._solved = [state[f"curriculum_{level}_solved"] for level in levels]
        self._asked = [state[f"curriculum_{level}_asked"] for level in levels]


def _levels(column: Sequence[Any], name: str) -> list[Any]:
    """The different values of the column, from easy to hard. Raises DataError."""
    values = list(dict.fromkeys(column)) if all(isinstance(v, int | float | str) for v in column) else []
    if not values or (len({isinstance(v, str) for v in values}) > 1):
        raise DataError(
            f"curriculum: column {name!r} must hold a number or a text in every row, which says how hard the row is."
        )
    return values if isinstance(values[0], str) else sorted(values)


def _whole(shares: Sequence[float], count: int) -> list[int]:
    """Whole numbers that add up to `count`, by largest remainders (of equal ones the first). Where they can, all that
    have a share get 1 at least.
    """
    least = int(sum(share > 0 for share in shares) <= count)
    parts = [share * count for share in shares]
    found = [max(int(part), least * (share > 0)) for part, share in zip(parts, shares, strict=True)]
    while sum(found) > count:  # what was raised to 1 is taken from the largest
        found[found.index(max(found))] -= 1
    by_remainder = sorted(range(len(parts)), key=lambda n: (found[n] - parts[n], n))
    for n in by_remainder[: count - sum(found)]:
        found[n] += 1
    return found
