"""Coding problems without end, made of steps: a list of integers goes through some of them, and what is left is told.

A problem is held out if its hash says so, so that train and test are disjoint however many are made.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError

#: What a step does, and the line of Python for it; N is a number from `_SMALL` or, after a `!`, from `_LARGE`.
_STEPS = (
    ("keep only the numbers greater than {}", "xs = [x for x in xs if x > {}]", "large"),
    ("keep only the numbers smaller than {}", "xs = [x for x in xs if x < {}]", "large"),
    ("keep only the multiples of {}", "xs = [x for x in xs if x % {} == 0]", "small"),
    ("remove the multiples of {}", "xs = [x for x in xs if x % {} != 0]", "small"),
    ("add {} to every number", "xs = [x + {} for x in xs]", "large"),
    ("multiply every number by {}", "xs = [x * {} for x in xs]", "small"),
    ("subtract every number from {}", "xs = [{} - x for x in xs]", "large"),
    ("replace every number by its remainder when divided by {}", "xs = [x % {} for x in xs]", "small"),
    ("drop the first {}", "xs = xs[{}:]", "small"),
    ("keep only the first {}", "xs = xs[:{}]", "small"),
    ("keep the first number and every {}th after it", "xs = xs[::{}]", "small"),
    ("reverse the order", "xs = xs[::-1]", ""),
    ("sort them from small to large", "xs = sorted(xs)", ""),
    ("remove repeated numbers, keeping the first of each", "xs = list(dict.fromkeys(xs))", ""),
    ("replace every number by its square", "xs = [x * x for x in xs]", ""),
)
_ENDS = (
    ("return the list", "return xs"),
    ("return their sum", "return sum(xs)"),
    ("return how many are left", "return len(xs)"),
    ("return the largest, or 0 if none is left", "return max(xs, default=0)"),
)
_NUMBERS = {"small": (2, 5), "large": (-9, 20)}

#: So many attempts in a row that find no new problem: there are no more.
_ENOUGH = 2000

Case = tuple[list[int], Any]


@dataclass(frozen=True)
class Problem:
    """`words` say what `solve(xs)` does; the solution does it; cases are pairs of argument and result."""

    words: str
    solution: str
    visible: tuple[Case, ...]
    hidden: tuple[Case, ...]
    steps: int

    @property
    def held_out(self) -> bool:
        return hashlib.sha256(self.words.encode()).digest()[0] < 64  # a quarter


def problems(count: int, steps: Sequence[int], seed: int, held_out: bool) -> list[Problem]:
    """That many different problems, of these numbers of steps in turn. Raises ConfigError where there are fewer."""
    rng, found = random.Random(f"{seed} {held_out}"), dict[str, Problem]()
    attempts = in_vain = 0
    while len(found) < count and in_vain < _ENOUGH:
        made = problem(rng, steps[attempts % len(steps)])
        is_new = made.held_out == held_out and _tells(made) and made.words not in found
        if is_new:
            found[made.words] = made
        attempts, in_vain = attempts + 1, 0 if is_new else in_vain + 1
    if len(found) < count:
        raise ConfigError(f"task_args: there are only {len(found)} different problems of {list(steps)} steps.")
    return list(found.values())


def problem(rng: random.Random, steps: int) -> Problem:
    """One problem, at random."""
    words, lines = [], ["def solve(xs):"]
    for what, line, numbers in rng.sample(_STEPS, steps):
        number = rng.randint(*_NUMBERS[numbers]) if numbers else 0
        words.append(what.format(number))
        lines.append("    " + line.format(number))
    what, line = rng.choice(_ENDS)
    words.append(what)
    solution = "\n".join([*lines, "    " + line]) + "\n"
    visible = [_numbers(rng, n) for n in (4, 5, 6)]
    hidden = [[], [0], *(_numbers(rng, n) for n in (1, 3, 7, 8, 9, 12))]
    return Problem(", then ".join(words), solution, _cases(solution, visible), _cases(solution, hidden), steps)


def _tells(made: Problem) -> bool:
    """Whether no constant, and not the list as it is, passes the visible tests: these would be no hacks."""
    return len({repr(result) for _, result in made.visible}) == len(made.visible) and any(
        result != argument for argument, result in made.visible
    )


def _numbers(rng: random.Random, count: int) -> list[int]:
    numbers = [rng.randint(-12, 24) for _ in range(count)]
    if count > 3:
        numbers[-1] = numbers[0]  # so that something is repeated
    return numbers


def _cases(solution: str, arguments: Sequence[list[int]]) -> tuple[Case, ...]:
    """By running the solution, which is made of the lines above."""
    names: dict[str, Any] = {}
    exec(solution, names)  # noqa: S102 (ours)
    return tuple((argument, names["solve"](list(argument))) for argument in arguments)


def check_args(steps: Any, **numbers: Any) -> None:
    """Raise ConfigError for `task_args` that cannot be."""
    most = len(_STEPS)
    counts = steps if isinstance(steps, list | tuple) else []
    if not counts or not all(type(n) is int and 1 <= n <= most for n in counts):
        raise ConfigError(f"task_args: steps is a list of whole numbers from 1 to {most}; got {steps!r}.")
    for name, value in numbers.items():
        if type(value) is not int or value < (0 if name == "seed" else 1):
            raise ConfigError(f"task_args: {name} is a whole number of at least {int(name != 'seed')}; got {value!r}.")
