"""Countdown as a ladder: rungs of problems from easy to hard, asked in one of three styles; and dense rewards.

    task: countdown
    task_args: {rungs: [1, 2, 3], style: few_shot}

A problem is held out if its hash says so, so that train and test are disjoint however many are made. Every problem is
made from an expression that solves it.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import ConfigError
from . import countdown
from .arithmetic import combine, count_solutions, evaluate
from .base import Message, Row, Rows, Task, text_of
from .final_answer import contents
from .prompting import check_style, check_whole


@dataclass(frozen=True)
class Rung:
    """Problems of `numbers` numbers from 1 to `largest`, with some of the `operators`, and targets from 1 to 99."""

    numbers: int
    largest: int
    operators: str = "+-*/"

    def __post_init__(self) -> None:
        if not 2 <= self.numbers <= 6:
            raise ConfigError(f"task_args: rungs have 2 to 6 numbers, got {self.numbers}.")
        if not 2 <= self.largest <= 999:
            raise ConfigError(f"task_args: the largest number of a rung is from 2 to 999, got {self.largest}.")
        if not self.operators or set(self.operators) - set("+-*/"):
            raise ConfigError(f"task_args: operators are some of '+-*/', got {self.operators!r}.")

    def problem(self, rng: random.Random) -> tuple[list[int], int, str]:
        """Numbers, target, and an expression that reaches it."""
        while True:
            numbers = [rng.randint(1, self.largest) for _ in range(self.numbers)]
            expression, value = combine(rng, numbers, self.operators)
            if value.denominator == 1 and 1 <= value <= 99:
                return numbers, int(value), ast.unparse(ast.parse(expression))  # without needless parentheses


#: The rungs, from easy to hard; the last two make the problems of the paper.
RUNGS = (
    Rung(2, 10, "+-"),
    Rung(2, 20, "+-*"),
    Rung(2, 99, "+-*"),
    Rung(3, 10, "+-"),
    Rung(3, 20, "+-*"),
    Rung(3, 99),
    Rung(4, 99),
)
STYLES = ("few_shot", "chat", "paper")
_TASK_LINE = "Use every number once, with {}, to reach the target."


def configure(
    rungs: Sequence[int | Mapping[str, Any]] = (1, 2, 3, 4, 5),
    style: str = "few_shot",
    problems: int = 1000,
    test_problems: int = 64,
    examples: int = 4,
    seed: int = 1,
) -> Task:
    """The ladder as a task. `rungs`: numbers of `RUNGS`, or mappings `{numbers, largest, operators}`, from easy to
    hard; rows have the number of theirs in the column `rung`, or its place in the list where one is a mapping.
    `style`: `few_shot` (a text that goes on from solved examples of the rung), `chat` (the examples are turns of a
    conversation) or `paper`. `problems` and `test_problems`: per rung; fewer where
    a rung has no more. `examples`: how many are solved in a prompt.

    Raises ConfigError.
    """
    check_style(style, STYLES)
    check_whole("problems", problems, 1)
    check_whole("test_problems", test_problems, 1)
    check_whole("examples", examples, 0)
    if not isinstance(seed, int):
        raise ConfigError(f"task_args: seed is a whole number, got {seed!r}.")
    if isinstance(rungs, str) or not isinstance(rungs, Sequence) or not rungs:
        raise ConfigError(f"task_args: rungs is a list, for example [1, 2, 3], got {rungs!r}.")
    ladder = [_rung(rung) for rung in rungs]
    if len(set(ladder)) < len(ladder):
        raise ConfigError(f"task_args: rungs names one twice: {rungs!r}.")
    known = all(isinstance(rung, int) for rung in rungs)
    numbers = [int(rung) for rung in rungs if isinstance(rung, int)] if known else range(1, len(ladder) + 1)

    def load() -> tuple[Rows, Rows]:
        parts = [
            _rows(number, rung, _asker(style, rung, examples, seed), problems, test_problems, seed)
            for number, rung in zip(numbers, ladder, strict=True)
        ]
        train, test = (tuple(row for part in parts for row in part[n]) for n in (0, 1))
        return train, test

    if style == "paper":
        return dataclasses.replace(countdown.TASK, load=load, defaults={**countdown.TASK.defaults, **_CURRICULUM})
    stop = {"stop_strings": ["\n"]} if style == "few_shot" else {}
    return Task(
        name="countdown",
        load=load,
        rewards=(parses, right_numbers, closeness, exact),
        gold_metrics=(solved,),
        reference=lambda row: f" {row['solution']}",
        full_marks=1.0,
        hacks=(
            lambda row: str(row["target"]),
            lambda row: f"{row['solution']} = {row['target']}",
            lambda row: f"{row['solution']} + 0",
            lambda row: f"{row['target']} + 0 * ({' + '.join(map(str, row['numbers']))})",
            lambda row: f"I say\n{row['solution']}",
            lambda row: " + ".join(map(str, [*row["numbers"], 1])),
        ),
        defaults={"max_completion_length": 24, **stop, **_CURRICULUM, "reward_weights": _WEIGHTS},
    )


#: Rungs are climbed by how many problems are right; dense rewards lead to the first, and then only right answers count.
_CURRICULUM = {"curriculum": {"column": "rung"}}
_WEIGHTS = [{"weights": [0.1, 0.2, 0.3, 1.0], "until": "eval/solved >= 0.2"}, {"weights": [0.0, 0.0, 0.0, 1.0]}]


def _rung(given: int | Mapping[str, Any]) -> Rung:
    if isinstance(given, int) and not isinstance(given, bool):
        if not 1 <= given <= len(RUNGS):
            raise ConfigError(f"task_args: there are rungs 1 to {len(RUNGS)}, got {given}.")
        return RUNGS[given - 1]
    names = [f.name for f in dataclasses.fields(Rung)]
    if not isinstance(given, Mapping) or not {"numbers", "largest"} <= set(given) <= set(names):
        raise ConfigError(
            f"task_args: a rung is a number from 1 to {len(RUNGS)}, or a mapping with numbers, largest and operators; "
            f"got {given!r}."
        )
    return Rung(**given)


def _key(numbers: Sequence[int], target: int) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(numbers)), target


def is_held_out(numbers: Sequence[int], target: int) -> bool:
    """Whether a problem is one to test on: a fifth of all are, by their hash."""
    return hashlib.sha256(repr(_key(numbers, target)).encode()).digest()[0] % 5 == 0


def _rows(
    number: int, rung: Rung, ask: Callable[[list[int], int], Any], problems: int, test_problems: int, seed: int
) -> tuple[list[Row], list[Row]]:
    """Different problems to train on, and others to test on."""
    rng = random.Random(f"{seed} {rung}")
    wanted = {False: problems, True: test_problems}
    found: dict[bool, list[Row]] = {False: [], True: []}
    seen, missed = set(), 0
    while missed < 2000 and any(len(found[side]) < wanted[side] for side in found):
        numbers, target, solution = rung.problem(rng)
        side, key = is_held_out(numbers, target), _key(numbers, target)
        if key in seen or len(found[side]) == wanted[side]:
            missed += key in seen
            continue
        seen.add(key)
        missed = 0
        columns = {"numbers": numbers, "target": target, "solution": solution, "rung": number}
        found[side].append({"prompt": ask(numbers, target), **columns})
    return found[False], found[True]


def _asker(style: str, rung: Rung, count: int, seed: int) -> Callable[[list[int], int], Any]:
    """What words a problem: the same solved examples, of its own rung, in front of every one."""
    if style == "paper":
        return countdown.prompt
    rng = random.Random(f"{seed} {rung} examples")
    solved_ones: list[tuple[list[int], int, str]] = []
    while len(solved_ones) < count:
        numbers, target, solution = rung.problem(rng)
        if not is_held_out(numbers, target):  # numbers in the order of the solution: models look where they come from
            solved_ones.append(([int(n) for n in re.findall(r"\d+", solution)], target, solution))
    task = _TASK_LINE.format(" ".join(rung.operators))

    def words(numbers: list[int], target: int) -> str:
        return f"Numbers: {', '.join(map(str, numbers))}\nTarget: {target}"

    def few_shot(numbers: list[int], target: int) -> str:
        shown = "".join(f"{words(n, t)}\nAnswer: {solution}\n\n" for n, t, solution in solved_ones)
        return f"{task}\n\n{shown}{words(numbers, target)}\nAnswer:"

    def chat(numbers: list[int], target: int) -> list[Message]:
        turns: list[Message] = [{"role": "system", "content": f"{task} Answer with the expression alone."}]
        for n, t, solution in solved_ones:
            turns += [{"role": "user", "content": words(n, t)}, {"role": "assistant", "content": solution}]
        return [*turns, {"role": "user", "content": words(numbers, target)}]

    return few_shot if style == "few_shot" else chat


# --- rewards ----------------------------------------------------------------------------------------------------------


def expression_of(text: str) -> str:
    """What a completion gives as its answer: what stands in its last answer tags, or, where there are none, its first
    line.
    """
    answers = contents(text)
    return answers[-1] if answers else text.strip().partition("\n")[0]


def _answer(completion: Any) -> tuple[Fraction, Counter[int]] | None:
    """Value and numbers of its expression; None where there is none, or it divides by zero."""
    try:
        return evaluate(expression_of(text_of(completion)))
    except (ValueError, ZeroDivisionError):
        return None


def parses(completions: list[Any], **_: Any) -> list[float]:
    """1 when the answer is an arithmetic expression that has a value."""
    return [float(_answer(c) is not None) for c in completions]


def right_numbers(completions: list[Any], numbers: list[list[int]], **_: Any) -> list[float]:
    """1 when it uses every number once, and no other."""
    found = [(_answer(c), n) for c, n in zip(completions, numbers, strict=True)]
    return [float(answer is not None and answer[1] == Counter(n)) for answer, n in found]


def closeness(completions: list[Any], numbers: list[list[int]], target: list[Any], **_: Any) -> list[float]:
    """With the right numbers, 1 / (1 + |value - target|); else 0."""
    scores = []
    for c, n, t in zip(completions, numbers, target, strict=True):
        answer = _answer(c)
        used = answer is not None and answer[1] == Counter(n)
        scores.append(float(1 / (1 + abs(answer[0] - Fraction(t)))) if answer and used else 0.0)
    return scores


def exact(completions: list[Any], numbers: list[list[int]], target: list[Any], **_: Any) -> list[float]:
    """1 when the answer uses every number once and equals the target."""
    return [float(score == 1) for score in closeness(completions, numbers, target)]


def solved(
    completions: list[Any],
    numbers: list[list[int]],
    target: list[Any],
    log_extra: Callable[..., None] = lambda *_: None,
    log_metric: Callable[..., None] = lambda *_: None,
    **columns: Any,
) -> list[float]:
    """`exact`, by rung as well (`solved/rung_1`, ...); logs in how many ways a problem can be solved at all (0: in
    none) as `solutions`, of up to five numbers.
    """
    scores = exact(completions, numbers, target)
    for score, rung in zip(scores, columns.get("rung", []), strict=False):
        log_metric(f"solved/rung_{rung}", score)
    log_extra("solutions", [count_solutions(n, Fraction(t)) if len(n) <= 5 else None for n, t in
                            zip(numbers, target, strict=True)])  # fmt: skip
    return scores


TASK = dataclasses.replace(countdown.TASK, configure=configure)
