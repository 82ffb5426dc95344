"""Write the hundred problems of `task: math` (src/seedtune/tasks/math_problems.jsonl): fifty texts of ours with two sets of
numbers each. Every answer is computed one way and checked another. Texts to test on are not among those to train on.

    python benchmarks/math_problems.py
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import factorial
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "src" / "seedtune" / "tasks" / "math_problems.jsonl"
Numbers = dict[str, int]


@dataclass(frozen=True)
class Problem:
    """`text`, and a worked `solution` that ends in the answer `{x}`, over numbers that `draw` draws. `answer` computes x
    from them; `check` says whether an x is right, by putting it in.
    """

    level: int
    text: str
    solution: str
    draw: Callable[[random.Random], Numbers]
    answer: Callable[..., Any]
    check: Callable[..., bool]

    def rows(self, rng: random.Random, split: str) -> list[dict[str, Any]]:
        """Two problems with different answers."""
        found: dict[str, dict[str, Any]] = {}
        while len(found) < 2:
            numbers = self.draw(rng)
            x = self.answer(**numbers)
            if not self.check(x, **numbers):
                raise AssertionError(f"{x} is no answer to {self.text.format(**numbers)!r}")
            said = latex(x)
            row = {"problem": self.text.format(**numbers), "solution": self.solution.format(**numbers, x=said)}
            found.setdefault(said, {"split": split, "level": self.level, **row, "answer": said})
        return list(found.values())


def latex(x: Any) -> str:
    """A number, a fraction or a text, as an answer is written."""
    if isinstance(x, Fraction) and x.denominator > 1:
        return f"{'-' if x < 0 else ''}\\frac{{{abs(x.numerator)}}}{{{x.denominator}}}"
    return str(x)


def draws(**ranges: tuple[int, int]) -> Callable[[random.Random], Numbers]:
    """Whole numbers, each from its range."""
    return lambda rng: {name: rng.randint(*limits) for name, limits in ranges.items()}


def end(text: str) -> str:
    return text + " The answer is \\boxed{{{x}}}."


WORDS = [
    Problem(1, "A baker puts {a} rolls in each basket and fills {b} baskets. {c} rolls are left over. How many rolls did she bake?",
            end("The baskets hold {a} * {b} rolls, and {c} more are left."),
            draws(a=(6, 15), b=(4, 12), c=(1, 5)), lambda a, b, c: a * b + c, lambda x, a, b, c: (x - c) // b == a and (x - c) % b == 0),
    Problem(1, "Nora had {a} stickers. She gave {b} to her brother and got {c} from a friend. How many stickers does she have now?",
            end("She has {a} - {b} + {c} stickers."),
            draws(a=(30, 60), b=(3, 20), c=(2, 15)), lambda a, b, c: a - b + c, lambda x, a, b, c: x + b == a + c),
    Problem(1, "A train has {a} wagons with {b} seats each. {c} seats are taken. How many seats are free?",
            end("Of {a} * {b} seats, {c} are taken."),
            draws(a=(5, 12), b=(40, 60), c=(50, 150)), lambda a, b, c: a * b - c, lambda x, a, b, c: (x + c) / a == b),
    Problem(2, "Tickets for a play cost {a} dollars for adults and {b} dollars for children. A group of {c} adults and {d} children goes. What do they pay, in dollars?",
            end("Adults pay {a} * {c} and children {b} * {d} dollars."),
            draws(a=(11, 19), b=(4, 9), c=(2, 6), d=(3, 9)), lambda a, b, c, d: a * c + b * d, lambda x, a, b, c, d: (x - b * d) == sum([a] * c)),
    Problem(2, "A pump fills {a} liters a minute into a tank that holds {b} liters and has {c} liters in it. After how many minutes is the tank full?",
            end("There is room for {b} - {c} liters, at {a} liters a minute."),
            lambda r: (lambda a, m, c: {"a": a, "c": c, "b": c + a * m})(r.randint(4, 12), r.randint(8, 30), r.randint(10, 90)),
            lambda a, b, c: (b - c) // a, lambda x, a, b, c: c + a * x == b),
    Problem(1, "Each of {a} shelves in a library holds {b} books, except the last, which holds {c}. How many books are on the shelves?",
            end("All but one shelf hold {b} books: ({a} - 1) * {b} + {c}."),
            draws(a=(4, 9), b=(20, 40), c=(3, 19)), lambda a, b, c: (a - 1) * b + c, lambda x, a, b, c: x == a * b - (b - c)),
    Problem(2, "Omar saves {a} dollars a week. He already has {b} dollars and wants a bicycle for {c} dollars. For how many weeks must he save?",
            end("He lacks {c} - {b} dollars and saves {a} a week."),
            lambda r: (lambda a, w, b: {"a": a, "b": b, "c": b + a * w})(r.randint(7, 25), r.randint(6, 20), r.randint(20, 80)),
            lambda a, b, c: (c - b) // a, lambda x, a, b, c: b + x * a == c),
    Problem(2, "A recipe for {a} people needs {b} grams of flour. How many grams are needed for {c} people?",
            end("One person needs {b} / {a} grams; {c} people need {c} times that."),
            lambda r: (lambda a, k, c: {"a": a, "b": a * k, "c": c})(r.randint(3, 6), r.randint(40, 90), r.randint(7, 14)),
            lambda a, b, c: b // a * c, lambda x, a, b, c: Fraction(x, c) == Fraction(b, a)),
    Problem(2, "Lena reads {a} pages on Monday and twice as many on Tuesday. On Wednesday she reads {b} pages fewer than on Tuesday. How many pages does she read in the three days?",
            end("On Tuesday she reads 2 * {a}, on Wednesday 2 * {a} - {b} pages."),
            draws(a=(15, 40), b=(3, 14)), lambda a, b: a + 2 * a + 2 * a - b, lambda x, a, b: x + b == 5 * a),
    Problem(1, "A farmer collects {a} eggs a day. How many eggs does he collect in {b} weeks?",
            end("{b} weeks have 7 * {b} days."),
            draws(a=(12, 48), b=(2, 6)), lambda a, b: a * 7 * b, lambda x, a, b: x / (7 * b) == a),
    Problem(2, "A shirt costs {a} dollars. In a sale it is {b} percent cheaper. What does it cost in the sale, in dollars?",
            end("{b} percent of {a} dollars are taken off."),
            lambda r: {"a": 20 * r.randint(1, 5), "b": 5 * r.randint(1, 9)}, lambda a, b: Fraction(a * (100 - b), 100) if a * b % 100 else a * (100 - b) // 100,
            lambda x, a, b: x + Fraction(a * b, 100) == a),
    Problem(3, "Two friends share {a} marbles so that one has {b} more than the other. How many does the one with fewer have?",
            end("Without the {b} more, both have the same: ({a} - {b}) / 2."),
            lambda r: (lambda x, b: {"a": 2 * x + b, "b": b})(r.randint(8, 40), r.randint(2, 14)),
            lambda a, b: (a - b) // 2, lambda x, a, b: x + (x + b) == a),
    Problem(3, "A mother is {a} times as old as her daughter. Together they are {b} years old. How old is the daughter?",
            end("Together they are {a} + 1 times as old as the daughter."),
            lambda r: (lambda a, x: {"a": a, "b": (a + 1) * x})(r.randint(3, 6), r.randint(5, 11)),
            lambda a, b: b // (a + 1), lambda x, a, b: x + a * x == b),
    Problem(2, "A bus leaves with {a} passengers. At the first stop {b} get off and {c} get on; at the second stop half of those on the bus get off. How many are left?",
            end("After the first stop there are {a} - {b} + {c} passengers; half of them stay."),
            lambda r: (lambda x, b, c: {"a": 2 * x + b - c, "b": b, "c": c})(r.randint(10, 20), r.randint(4, 9), r.randint(2, 8)),
            lambda a, b, c: (a - b + c) // 2, lambda x, a, b, c: 2 * x - c + b == a),
    Problem(2, "A cyclist rides {a} kilometers an hour for {b} hours and then {c} kilometers an hour for {d} hours. How many kilometers does she ride?",
            end("She rides {a} * {b} and then {c} * {d} kilometers."),
            draws(a=(16, 28), b=(2, 4), c=(9, 15), d=(1, 3)), lambda a, b, c, d: a * b + c * d, lambda x, a, b, c, d: (x - c * d) / b == a),
    Problem(1, "There are {a} rows of chairs with {b} chairs each. {c} more chairs are brought. How many chairs are there?",
            end("{a} * {b} chairs stand in rows, and {c} are added."),
            draws(a=(6, 14), b=(8, 16), c=(3, 20)), lambda a, b, c: a * b + c, lambda x, a, b, c: x - c == sum([b] * a)),
    Problem(3, "A box holds red and blue pencils. There are {a} pencils, and {b} times as many red ones as blue ones. How many pencils are red?",
            end("One part in {b} + 1 is blue, the rest is red."),
            lambda r: (lambda b, x: {"b": b, "a": (b + 1) * x})(r.randint(2, 5), r.randint(6, 15)),
            lambda a, b: a - a // (b + 1), lambda x, a, b: x == b * (a - x)),
    Problem(2, "A garden is {a} meters long and {b} meters wide. How many meters of fence go around it, if a gate of {c} meters stays open?",
            end("All around it is 2 * ({a} + {b}) meters; the gate takes {c}."),
            draws(a=(12, 30), b=(6, 14), c=(2, 4)), lambda a, b, c: 2 * (a + b) - c, lambda x, a, b, c: x + c == a + a + b + b),
    Problem(2, "A factory makes {a} toys an hour and works {b} hours a day. How many days does it take to make {c} toys?",
            end("In one day it makes {a} * {b} toys."),
            lambda r: (lambda a, b, x: {"a": a, "b": b, "c": a * b * x})(r.randint(20, 45), r.randint(6, 10), r.randint(3, 9)),
            lambda a, b, c: c // (a * b), lambda x, a, b, c: x * a * b == c),
    Problem(3, "Paul buys {a} notebooks and {b} pens for {c} dollars. A notebook costs {d} dollars. What does a pen cost, in dollars?",
            end("The notebooks cost {a} * {d} dollars; the rest is for {b} pens."),
            lambda r: (lambda a, b, d, x: {"a": a, "b": b, "d": d, "c": a * d + b * x})(r.randint(2, 6), r.randint(3, 8), r.randint(3, 7), r.randint(1, 4)),
            lambda a, b, c, d: (c - a * d) // b, lambda x, a, b, c, d: a * d + b * x == c),
    Problem(2, "The average of {a}, {b} and a third number is {c}. What is the third number?",
            end("The three numbers add up to 3 * {c}."),
            draws(a=(10, 40), b=(10, 40), c=(20, 40)), lambda a, b, c: 3 * c - a - b, lambda x, a, b, c: Fraction(a + b + x, 3) == c),
    Problem(3, "A candle is {a} centimeters tall and burns down {b} centimeters an hour. Another is {c} centimeters tall and burns down {d} centimeters an hour. After how many hours are they equally tall?",
            end("The gap of {a} - {c} centimeters closes by {b} - {d} an hour."),
            lambda r: (lambda d, g, x: {"b": d + g, "d": d, "c": (d + g) * x + 4, "a": (d + g) * x + 4 + g * x})(r.randint(2, 3), r.randint(1, 3), r.randint(2, 6)),
            lambda a, b, c, d: (a - c) // (b - d), lambda x, a, b, c, d: a - b * x == c - d * x),
    Problem(2, "Half of the {a} guests at a party drink tea, and a third of the others drink juice. How many guests drink juice?",
            end("{a} / 2 guests do not drink tea; a third of them drinks juice."),
            lambda r: {"a": 6 * r.randint(4, 20)}, lambda a: a // 6, lambda x, a: 3 * x == a - a // 2),
    Problem(1, "A movie starts {a} minutes after 6 o'clock and lasts {b} minutes. How many minutes after 6 o'clock does it end?",
            end("It ends {a} + {b} minutes after 6 o'clock."),
            draws(a=(5, 55), b=(80, 140)), lambda a, b: a + b, lambda x, a, b: x - a == b),
    Problem(3, "A car uses {a} liters of fuel for 100 kilometers. A liter costs {b} dollars. What does the fuel for {c} kilometers cost, in dollars?",
            end("It uses {a} * {c} / 100 liters."),
            lambda r: {"a": r.randint(5, 9), "b": r.randint(2, 3), "c": 100 * r.randint(2, 9)}, lambda a, b, c: a * c // 100 * b,
            lambda x, a, b, c: Fraction(x, b) * 100 == a * c),
    Problem(2, "In a class of {a} pupils, {b} play an instrument and {c} sing in the choir. {d} do both. How many do neither?",
            end("{b} + {c} - {d} pupils do at least one."),
            lambda r: (lambda d, p, q, n: {"d": d, "b": p + d, "c": q + d, "a": p + q + d + n})(r.randint(2, 5), r.randint(3, 9), r.randint(3, 8), r.randint(2, 9)),
            lambda a, b, c, d: a - (b + c - d), lambda x, a, b, c, d: (b - d) + (c - d) + d + x == a),
    Problem(3, "Working alone, Ana paints a fence in {a} hours and Ben in {b} hours. How many hours do they take together? Give a fraction if needed.",
            end("In one hour they paint 1/{a} + 1/{b} of the fence."),
            lambda r: (lambda a, b: {"a": a, "b": b})(r.randint(2, 6), r.randint(7, 12)), lambda a, b: Fraction(a * b, a + b),
            lambda x, a, b: x * (Fraction(1, a) + Fraction(1, b)) == 1),
    Problem(2, "A spider has 8 legs and an ant has 6. In a jar are {a} spiders and some ants, with {b} legs in all. How many ants are there?",
            end("The spiders have 8 * {a} legs; the rest belongs to ants."),
            lambda r: (lambda a, x: {"a": a, "b": 8 * a + 6 * x})(r.randint(2, 9), r.randint(3, 12)), lambda a, b: (b - 8 * a) // 6,
            lambda x, a, b: 8 * a + 6 * x == b),
    Problem(3, "A number of coins, all worth 5 or 10 cents, are worth {a} cents. There are {b} coins. How many of them are worth 10 cents?",
            end("If all were worth 5 cents they would be worth 5 * {b}; each of the others adds 5."),
            lambda r: (lambda b, x: {"b": b, "a": 5 * b + 5 * x})(r.randint(12, 20), r.randint(3, 11)), lambda a, b: (a - 5 * b) // 5,
            lambda x, a, b: 10 * x + 5 * (b - x) == a),
    Problem(2, "A snail climbs {a} centimeters every day and slides back {b} centimeters every night. How high is it, in centimeters, on the evening of day {c}, before it slides?",
            end("It gains {a} - {b} in each of the {c} - 1 days before, and {a} on the last."),
            draws(a=(20, 40), b=(5, 15), c=(3, 9)), lambda a, b, c: (c - 1) * (a - b) + a, lambda x, a, b, c: x == c * a - (c - 1) * b),
]  # fmt: skip

ALGEBRA = [
    Problem(1, "Solve for $x$: ${a}x + {b} = {c}$.", end("Subtract {b}, then divide by {a}."),
            lambda r: (lambda a, b, x: {"a": a, "b": b, "c": a * x + b})(r.randint(2, 9), r.randint(1, 20), r.randint(-9, 12)),
            lambda a, b, c: (c - b) // a, lambda x, a, b, c: a * x + b == c),
    Problem(2, "Solve for $x$: ${a}(x - {b}) = {c}x + {d}$.", end("Multiply out and bring the terms with x to one side."),
            lambda r: (lambda a, b, c, x: {"a": a, "b": b, "c": c, "d": a * (x - b) - c * x})(r.randint(5, 9), r.randint(1, 5), r.randint(1, 3), r.randint(8, 15)),
            lambda a, b, c, d: (d + a * b) // (a - c), lambda x, a, b, c, d: a * (x - b) == c * x + d),
    Problem(3, "What is the sum of the solutions of $x^2 - {a}x + {b} = 0$?", end("By Vieta's formulas the sum is the coefficient of -x."),
            lambda r: (lambda p, q: {"a": p + q, "b": p * q})(r.randint(1, 9), r.randint(2, 12)), lambda a, b: a,
            lambda x, a, b: any(p * (x - p) == b for p in range(x + 1))),
    Problem(3, "What is the larger solution of $x^2 - {a}x + {b} = 0$?", end("The left side is a product of two factors, x minus each solution."),
            lambda r: (lambda p, q: {"a": p + q, "b": p * q})(r.randint(1, 9), r.randint(10, 14)),
            lambda a, b: max(p for p in range(a + 1) if p * (a - p) == b), lambda x, a, b: x * x - a * x + b == 0 and 2 * x >= a),
    Problem(2, "If $f(x) = {a}x^2 - {b}x + {c}$, what is $f({d})$?", end("Put {d} for x."),
            draws(a=(1, 5), b=(1, 9), c=(1, 20), d=(2, 6)), lambda a, b, c, d: a * d * d - b * d + c, lambda x, a, b, c, d: x == d * (a * d - b) + c),
    Problem(2, "Simplify $\\frac{{{a}}}{{{b}}} + \\frac{{{c}}}{{{d}}}$ and give a fraction in lowest terms.", end("Over the common denominator {b} * {d} it is {a} * {d} + {c} * {b}."),
            draws(a=(1, 5), b=(7, 9), c=(1, 5), d=(11, 13)), lambda a, b, c, d: Fraction(a, b) + Fraction(c, d), lambda x, a, b, c, d: x * b * d == a * d + c * b),
    Problem(3, "Solve the system $x + y = {a}$, $x - y = {b}$ for $x$.", end("Add the equations: 2x = {a} + {b}."),
            lambda r: (lambda x, y: {"a": x + y, "b": x - y})(r.randint(10, 20), r.randint(1, 9)), lambda a, b: (a + b) // 2,
            lambda x, a, b: x - (a - x) == b),
    Problem(3, "The numbers {a}, {b}, {c} begin an arithmetic sequence. What is its {d}th term?", end("It rises by {b} - {a} each time."),
            lambda r: (lambda a, k: {"a": a, "b": a + k, "c": a + 2 * k, "d": r.randint(11, 19)})(r.randint(1, 9), r.randint(3, 8)),
            lambda a, b, c, d: a + (d - 1) * (b - a), lambda x, a, b, c, d: x == range(a, 10**4, c - b)[d - 1]),
    Problem(2, "What is ${a}^{b} - {c}^2$?", end("Compute both powers and subtract."),
            draws(a=(2, 5), b=(3, 5), c=(3, 9)), lambda a, b, c: a**b - c * c, lambda x, a, b, c: (x + c * c) / a ** (b - 1) == a),
    Problem(3, "For which $x$ is $\\frac{{x + {a}}}{{{b}}} = \\frac{{x}}{{{c}}}$?", end("Multiply both sides by {b} * {c}."),
            draws(a=(1, 9), b=(6, 9), c=(2, 5)), lambda a, b, c: Fraction(a * c, b - c), lambda x, a, b, c: (x + a) / b == x / c),
    Problem(2, "How many whole numbers $n$ satisfy ${a} < n \\le {b}$?", end("They are those from {a} + 1 to {b}."),
            draws(a=(3, 30), b=(40, 90)), lambda a, b: b - a, lambda x, a, b: x == len([n for n in range(200) if a < n <= b])),
    Problem(3, "What is the remainder when ${a}^2 + {b}$ is divided by {c}?", end("Compute {a} * {a} + {b} and take multiples of {c} away."),
            draws(a=(11, 29), b=(3, 40), c=(7, 13)), lambda a, b, c: (a * a + b) % c, lambda x, a, b, c: 0 <= x < c and (a * a + b - x) % c == 0),
    Problem(2, "What is the greatest common divisor of {a} and {b}?", end("Both are multiples of it, and what remains has no common divisor."),
            lambda r: (lambda g, p, q: {"a": g * p, "b": g * q})(r.randint(4, 15), r.choice([4, 5, 7]), r.choice([9, 11, 13])),
            lambda a, b: next(g for g in range(min(a, b), 0, -1) if a % g == b % g == 0), lambda x, a, b: a % x == 0 and b % x == 0 and not any(a % (k * x) == b % (k * x) == 0 for k in range(2, 30))),
    Problem(3, "A rectangle has perimeter {a} and one side of length {b}. What is its area?", end("The other side is {a} / 2 - {b}."),
            lambda r: (lambda b, s: {"a": 2 * (b + s), "b": b})(r.randint(4, 12), r.randint(3, 15)), lambda a, b: (a // 2 - b) * b,
            lambda x, a, b: 2 * (b + Fraction(x, b)) == a),
    Problem(3, "If $\\frac{{{a}}}{{x}} = \\frac{{{b}}}{{{c}}}$, what is $x$? Give a fraction if needed.", end("Cross multiplication gives {b}x = {a} * {c}."),
            draws(a=(2, 9), b=(2, 7), c=(3, 11)), lambda a, b, c: Fraction(a * c, b), lambda x, a, b, c: Fraction(a) / x == Fraction(b, c)),
    Problem(2, "Expand $(x + {a})(x - {b})$. What is the coefficient of $x$?", end("The terms with x are {a}x and -{b}x."),
            draws(a=(1, 12), b=(1, 12)), lambda a, b: a - b, lambda x, a, b: (1 + a) * (1 - b) == 1 + x - a * b),
    Problem(2, "What is ${a}$ percent of ${b}$?", end("It is {a} * {b} / 100."),
            lambda r: {"a": 5 * r.randint(1, 19), "b": 20 * r.randint(2, 30)}, lambda a, b: a * b // 100, lambda x, a, b: 100 * x == a * b),
    Problem(3, "In how many ways can {a} different books stand in a row?", end("There are {a} choices for the first place, one fewer for the next, and so on."),
            lambda r: {"a": r.randint(3, 6)}, lambda a: {3: 6, 4: 24, 5: 120, 6: 720}[a], lambda x, a: x == factorial(a)),
    Problem(3, "Three consecutive whole numbers add up to {a}. What is the largest of them?", end("The middle one is {a} / 3."),
            lambda r: {"a": 3 * r.randint(8, 60)}, lambda a: a // 3 + 1, lambda x, a: x + (x - 1) + (x - 2) == a),
    Problem(2, "A line goes through $(0, {a})$ and has slope {b}. What is its value of $y$ at $x = {c}$?", end("It is {a} + {b} * {c}."),
            draws(a=(-9, 9), b=(2, 7), c=(2, 9)), lambda a, b, c: a + b * c, lambda x, a, b, c: Fraction(x - a, c) == b),
]  # fmt: skip


def problems() -> list[dict[str, Any]]:
    """All of them, the same in every call."""
    rng = random.Random("seedtune math 1")
    found = []
    for kind in (WORDS, ALGEBRA):
        for n, problem in enumerate(kind):
            found += problem.rows(rng, "test" if n % 10 in (3, 6, 9) else "train")
    return found


def text() -> str:
    return "".join(json.dumps(row) + "\n" for row in problems())


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"{FILE}: {len(problems())} problems")
