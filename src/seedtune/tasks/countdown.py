"""Countdown: reach a target from three or four numbers with + - * /. Qiu et al. (arXiv 2509.24372), Table 1.

Problems come from our own generator; train and test are disjoint. A model's answer is untrusted: it is parsed with
`ast` and evaluated on `Fraction`s under size limits, never run.
"""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from .base import Row, Task, text_of

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}
_ALLOWED = re.compile(r"[0-9+\-*/() ]{1,100}")
_LARGEST = 10**9


def evaluate(expression: str) -> tuple[Fraction, Counter[int]]:
    """The exact value of an arithmetic expression, and the numbers that it uses.

    Digits, + - * / and parentheses only, at most 100 characters; no sign in front of a number, no powers.
    Raises ValueError (ZeroDivisionError on a division by zero) for anything else.
    """
    expression = expression.strip()
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
        raise ValueError(f"not allowed in an answer: {ast.unparse(node)!r}")

    return value(tree.body), used


def answer_is_right(text: str, numbers: list[int], target: int) -> bool:
    """Whether the last `<answer>` in `text` uses every number exactly once and equals the target."""
    answers = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if not answers:
        return False
    try:
        value, used = evaluate(answers[-1])
    except (ValueError, ZeroDivisionError):
        return False
    return value == target and used == Counter(numbers)


def format_score(text: str) -> float:
    """1 for exactly `<think>..</think>` newline `<answer>..</answer>`; else 0.1 for a think block plus 0.5 for an
    answer block. The prompt ends in `<think>`, so it is put in front before scoring.
    """
    whole = "<think>" + text
    block = r"(?:(?!</?think>|</?answer>).)*"
    if re.fullmatch(rf"<think>{block}</think>\n<answer>{block}</answer>", whole, re.DOTALL):
        return 1.0
    think = re.search(r"<think>.*?</think>", whole, re.DOTALL)
    answer = re.search(r"<answer>.*?</answer>", whole, re.DOTALL)
    return 0.1 * bool(think) + 0.5 * bool(answer)


def countdown(completions: list[Any], numbers: list[list[int]], target: list[int], **_: Any) -> list[float]:
    """0.1 * format + answer."""
    return [
        0.1 * format_score(text_of(c)) + float(answer_is_right(text_of(c), n, t))
        for c, n, t in zip(completions, numbers, target, strict=True)
    ]


def accuracy(completions: list[Any], numbers: list[list[int]], target: list[int], **_: Any) -> list[float]:
    """1 when the answer is right: the percentage of the paper's Table 1."""
    return [float(answer_is_right(text_of(c), n, t)) for c, n, t in zip(completions, numbers, target, strict=True)]


def prompt(numbers: list[int], target: int) -> str:
    """No chat template, as in the paper; it ends in an opening `<think>`."""
    return (
        "You are a helpful assistant. You think step by step first and then give the user the answer.\n"
        f"User: Using each of the numbers {numbers} exactly once, write an expression that equals {target}. You may "
        "use + - * / and parentheses. Put your reasoning in <think> </think> tags and the final expression alone in "
        "<answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.\n"
        "Assistant: Let me solve this step by step.\n<think>"
    )


def problems(count: int, seed: int, avoid: frozenset[tuple[Any, ...]] = frozenset()) -> list[Row]:
    """`count` different solvable problems, half of three numbers and half of four, none of them in `avoid`.

    Columns: `prompt`, `numbers`, `target`, `solution` (an expression that reaches the target).
    """
    rng = random.Random(seed)
    rows: list[Row] = []
    seen = set(avoid)
    while len(rows) < count:
        numbers = [rng.randint(1, 99) for _ in range(3 + len(rows) % 2)]
        expression, value = _combine(rng, numbers)
        key = (tuple(sorted(numbers)), value)
        if value.denominator == 1 and 10 <= value <= 99 and key not in seen:
            seen.add(key)
            target = int(value)
            rows.append(
                {"prompt": prompt(numbers, target), "numbers": numbers, "target": target, "solution": expression}
            )
    return rows


def _combine(rng: random.Random, numbers: list[int]) -> tuple[str, Fraction]:
    """A random expression over all numbers, built by joining two at a time."""
    parts = [(str(n), Fraction(n)) for n in numbers]
    while len(parts) > 1:
        (a, x), (b, y) = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        symbols = "+-*/" if y else "+-*"
        symbol = rng.choice(symbols)
        joined = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[symbol]
        parts.append((f"({a} {symbol} {b})", joined))
    text, value = parts[0]
    return text[1:-1], value


def task(train_size: int = 200, test_size: int = 2000) -> Task:
    """The paper's shape: 200 training and 2,000 test problems, disjoint."""
    train = problems(train_size, seed=1)
    avoid = frozenset((tuple(sorted(r["numbers"])), r["target"]) for r in train)
    return Task(
        name="countdown",
        train=train,
        test=problems(test_size, seed=2, avoid=avoid),
        rewards=(countdown,),
        truths=(accuracy,),
        gold=lambda row: f"I tried.</think>\n<answer>{row['solution']}</answer>",
        full_marks=1.1,
        hacks=(
            lambda row: f"</think>\n<answer>{row['target']}</answer>",
            lambda row: f"</think>\n<answer>{row['solution']} + 0</answer>",
            lambda row: f"</think>\n<answer>{row['solution']} = {row['target']}</answer>",
            lambda row: f"</think>\n<answer>{row['numbers'][0]}e0</answer>",
            lambda row: f"</think>\n<answer>{row['target']} + 0 * ({' + '.join(map(str, row['numbers']))})</answer>",
            lambda row: f"</think>\n<answer>{row['target']} # {row['solution']}</answer>",
            lambda row: f"</think>\n<answer>{row['solution']}</answer><answer>1</answer>",
            lambda row: f"</think>\n<answer>int('{row['target']}')</answer>",
            lambda row: f"</think>\n<answer>{'9**' * 9}9</answer>",
            lambda row: "</think>\n<answer>" + "(" * 5000 + "</answer>",
            lambda row: f"The answer is {row['solution']}",
        ),
        defaults={"max_completion_length": 512},
    )
