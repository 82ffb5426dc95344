"""Countdown: reach a target from a few numbers with + - * /. Qiu et al. (arXiv 2509.24372), Table 1.

The paper's protocol; problems come from our own generator, train and test are disjoint. `countdown_ladder.py` has
easier problems, other prompts and dense rewards.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from fractions import Fraction
from typing import Any

from .arithmetic import combine, evaluate, plain
from .base import Row, Task, text_of
from .final_answer import contents, tagged

#: The example of the paper's prompt: copying it earns nothing.
_EXAMPLE = "(1 + 2) / 3"


def answer_is_right(text: str, numbers: list[int], target: int) -> bool:
    """Whether the last `<answer>` in `text` uses every number exactly once and equals the target."""
    answer = _answer(text)
    return answer is not None and answer[0] == target and answer[1] == Counter(numbers)


def _answer(text: str) -> tuple[Fraction, Counter[int]] | None:
    """Value and numbers of the last answer; None where there is none, or it divides by zero."""
    answers = contents(text)
    try:
        return evaluate(answers[-1]) if answers else None
    except (ValueError, ZeroDivisionError):
        return None


def format_score(text: str) -> float:
    """1 for exactly `<think>..</think>` newline `<answer>..</answer>`; else 0.1 for a think block plus 0.5 for an
    answer block. The prompt ends in `<think>`, so it is put in front before scoring. An answer that is the prompt's
    example, or has no number in it, is none.
    """
    whole = "<think>" + _without_copies(text)
    block = r"(?:(?!</?think>|</?answer>).)*+"
    if re.fullmatch(rf"<think>{block}</think>\n<answer>{block}</answer>", whole, re.DOTALL):
        return 1.0
    return 0.1 * bool(tagged(whole, "think")) + 0.5 * bool(tagged(whole))


def _without_copies(text: str) -> str:
    """Without answers that are the example, or no numbers."""
    kept, place = [], 0
    for (start, end), content in zip(tagged(text), contents(text), strict=True):
        own = re.search(r"\d", plain(content)) and _squeezed(content) != _squeezed(_EXAMPLE)
        kept += [text[place : end if own else start]]
        place = end
    return "".join([*kept, text[place:]])


def _squeezed(expression: str) -> str:
    return re.sub(r"\s", "", plain(expression))


def countdown(completions: list[Any], numbers: list[list[int]], target: list[int], **_: Any) -> list[float]:
    """0.1 * format + answer."""
    return [
        0.1 * format_score(text_of(c)) + float(answer_is_right(text_of(c), n, t))
        for c, n, t in zip(completions, numbers, target, strict=True)
    ]


def accuracy(completions: list[Any], numbers: list[list[int]], target: list[int], **_: Any) -> list[float]:
    """1 when the answer is right: the percentage of the paper's Table 1."""
    return [float(answer_is_right(text_of(c), n, t)) for c, n, t in zip(completions, numbers, target, strict=True)]


def own_numbers(completions: list[Any], numbers: list[list[int]], **_: Any) -> list[float]:
    """1 when the last answer uses the problem's numbers and no other: it is not copied, nor the same for all."""
    answers = [_answer(text_of(c)) for c in completions]
    return [float(a is not None and a[1] == Counter(n)) for a, n in zip(answers, numbers, strict=True)]


def prompt(numbers: list[int], target: int) -> str:
    """No chat template, as in the paper; it ends in an opening `<think>`."""
    return (
        "You are a helpful assistant. You think step by step first and then give the user the answer.\n"
        f"User: Using each of the numbers {numbers} exactly once, write an expression that equals {target}. You may "
        "use + - * / and parentheses. Put your reasoning in <think> </think> tags and the final expression alone in "
        f"<answer> </answer> tags, for example <answer> {_EXAMPLE} </answer>.\n"
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
        expression, value = combine(rng, numbers)
        key = (tuple(sorted(numbers)), value)
        if value.denominator == 1 and 10 <= value <= 99 and key not in seen:
            seen.add(key)
            target = int(value)
            rows.append(
                {"prompt": prompt(numbers, target), "numbers": numbers, "target": target, "solution": expression}
            )
    return rows


def _load() -> tuple[list[Row], list[Row]]:
    """The paper's sizes: 200 training and 2,000 test problems, disjoint."""
    train = problems(200, seed=1)
    avoid = frozenset((tuple(sorted(r["numbers"])), r["target"]) for r in train)
    return train, problems(2000, seed=2, avoid=avoid)


TASK = Task(
    name="countdown",
    load=_load,
    rewards=(countdown,),
    gold_metrics=(accuracy, own_numbers),
    reference=lambda row: f"I tried.</think>\n<answer>{row['solution']}</answer>",
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
        lambda row: f"It is like the example.</think>\n<answer> {_EXAMPLE} </answer>",
        lambda row: "</think>\n<answer>the numbers</answer>",
    ),
    defaults={"max_completion_length": 512},
)
