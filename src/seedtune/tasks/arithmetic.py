"""Arithmetic of Countdown: expressions of a model, evaluated exactly; problems, made and solved.

A model's expression is untrusted: it is parsed with `ast` and evaluated on `Fraction`s under size limits, never run.
"""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import product

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}
_ALLOWED = re.compile(r"[0-9+\-*/() ]{1,100}")
_LARGEST = 10**9
#: How people and models write operators and digits, besides ASCII: signs of their own, and full-width forms.
_SIGNS = str.maketrans(
    dict(zip("×·⋅∗÷∕−–‐", "****//---", strict=True)) | {chr(ord(c) + 0xFEE0): c for c in "0123456789+-*/()"}
)


def plain(expression: str) -> str:
    """The expression in ASCII: `3 × ８ − 2` is `3 * 8 - 2`."""
    return expression.translate(_SIGNS).strip()


def evaluate(expression: str, signs: bool = False) -> tuple[Fraction, Counter[int]]:
    """The exact value of an arithmetic expression, and the numbers that it uses.

    Digits, + - * / and parentheses only, at most 100 characters; no sign in front of a number (unless `signs` allow
    a minus), no powers.
    Raises ValueError (ZeroDivisionError on a division by zero) for anything else.
    """
    expression = plain(expression)
    if not _ALLOWED.fullmatch(expression):
        raise ValueError("only digits, + - * / and parentheses are allowed, at most 100 characters")
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, MemoryError, RecursionError) as e:
        raise ValueError(f"not an arithmetic expression: {expression!r}") from e
    used: Counter[int] = Counter()

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value < _LARGEST:
            used[node.value] += 1
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if signs and isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        raise ValueError(f"not allowed in an expression: {ast.unparse(node)!r}")

    return value(tree.body), used


def combine(rng: random.Random, numbers: Sequence[int], operators: str = "+-*/") -> tuple[str, Fraction]:
    """A random expression over all numbers, built by joining two parts at a time; and its value."""
    parts = [(str(n), Fraction(n)) for n in numbers]
    while len(parts) > 1:
        (a, x), (b, y) = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        symbols = operators if y else operators.replace("/", "") or "+"
        symbol = rng.choice(symbols)
        joined = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[symbol]
        parts.append((f"({a} {symbol} {b})", joined))
    text, value = parts[0]
    return text.removeprefix("(").removesuffix(")") if len(numbers) > 1 else text, value


def count_solutions(numbers: Sequence[int], target: Fraction | int, operators: str = "+-*/") -> int:
    """In how many ways `numbers`, each used once, make `target`: all trees of joining two parts at a time, where a + b
    and b + a are one way. 0: it cannot be solved. Time grows fast: four numbers take milliseconds, six a minute.
    """
    return _ways(tuple(sorted(numbers)), operators).get(Fraction(target), 0)


@lru_cache(maxsize=4096)
def _ways(numbers: tuple[int, ...], operators: str) -> Counter[Fraction]:
    """Every value that can be made, with the number of ways."""
    if len(numbers) == 1:
        return Counter({Fraction(numbers[0]): 1})
    found: Counter[Fraction] = Counter()
    for chosen in range(1, 1 << (len(numbers) - 1)):  # the last number is always on the right: every split once
        left = tuple(n for i, n in enumerate(numbers) if chosen >> i & 1)
        right = tuple(n for i, n in enumerate(numbers) if not chosen >> i & 1)
        for (x, a), (y, b) in product(_ways(left, operators).items(), _ways(right, operators).items()):
            for value in _joined(x, y, operators):
                found[value] += a * b
    return found


def _joined(x: Fraction, y: Fraction, operators: str) -> list[Fraction]:
    values = []
    if "+" in operators:
        values.append(x + y)
    if "*" in operators:
        values.append(x * y)
    if "-" in operators:
        values += [x - y, y - x]
    if "/" in operators:
        values += [x / y] if y else []
        values += [y / x] if x else []
    return values
