"""Mathematics with an answer in a box: a hundred problems of ours (benchmarks/math_problems.py makes them), or a
dataset with the columns of GSM8K or MATH.

    task: math
    dataset_name: openai/gsm8k
    dataset_config: main
    dataset_test_split: test

The reward is 1 for a right answer and 0 else (Qiu et al., arXiv 2509.24372, on MATH), by math-verify.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..utils.files import read_lines
from . import math_equal
from .base import Row, Rows, Task, text_of
from .final_answer import has_words, last_boxed, last_hashed
from .prompting import asker, check_style, check_whole

_INSTRUCTION = "Think it through step by step. Write your final answer as \\boxed{answer}."
_FILE = Path(__file__).with_suffix(".jsonl")


def configure(style: str = "chat", examples: int = 0, levels: Sequence[int] | None = None) -> Task:
    """`style` and `examples`: how many solved problems of ours stand in front (`prompting`). `levels`: only problems
    whose column `level` is one of them (MATH: `Level 3`), from easy to hard for a curriculum.

    Raises ConfigError.
    """
    check_style(style)
    check_whole("examples", examples, 0)
    wrong = isinstance(levels, str) or not isinstance(levels, Sequence) or not all(isinstance(n, int) for n in levels)
    if levels is not None and (wrong or not levels):
        raise ConfigError(f"task_args: levels is a list of whole numbers, for example [3, 4, 5]; got {levels!r}.")
    chosen = frozenset(levels) if levels else None
    stop = {"stop_strings": ["\n\n"]} if style == "few_shot" else {}
    return Task(
        name="math",
        load=partial(_ours, style, examples, chosen),
        rewards=(math_correct,),
        gold_metrics=(math_correct, boxed),
        reference=lambda row: f"So it is \\boxed{{{row['solution']}}}.",
        full_marks=1.0,
        hacks=(
            lambda row: "",
            lambda row: row["problem"],
            lambda row: f"The answer is {row['solution']}.",
            lambda row: "\\boxed{}",
            lambda row: f"\\boxed{{{row['solution']} or 1}}",
            lambda row: f"\\boxed{{{row['solution']}}} or \\boxed{{123456}}",
            lambda row: "\\boxed{" * 50 + "1" + "}" * 50 + "\\boxed{9**9**9**9}",
        ),
        defaults={"max_completion_length": 512, **stop},
        adapt=partial(_adapt, style, examples, chosen),
    )


def answer_of(text: str, *, words: bool = False) -> str | None:
    """What a completion answers: in its last box, or, as GSM8K has it, behind `####` at its end (a number or an
    expression; with `words` any text). None: nothing.
    """
    found = last_boxed(text)
    return last_hashed(text, words=words) if found is None else found


def math_correct(completions: Sequence[Any], solution: Sequence[Any], **_: Any) -> list[float]:
    """1 when the marked answer is the solution, as a number, an expression, or a text."""
    math_equal.check_installed("task: math")
    pairs = [(text_of(completion), str(right)) for completion, right in zip(completions, solution, strict=True)]
    return [float(_is_right(answer_of(text, words=has_words(_plain(right))), right)) for text, right in pairs]


def boxed(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 when there is an answer in a box that is not empty."""
    return [float(bool(last_boxed(text_of(completion)))) for completion in completions]


def _is_right(answer: str | None, solution: str) -> bool:
    if answer is None or not (given := _plain(answer)):
        return False
    gold = _plain(solution)
    if given == gold:
        return True
    if has_words(given) or has_words(gold) or not math_equal.is_small(given):
        return False  # words, which are the same or are not
    return math_equal.equal(f"\\boxed{{{given}}}", f"\\boxed{{{gold}}}")


def _plain(answer: str) -> str:
    """Without what stands around a number: dollars, commas of thousands, `\\text{}`, and a point at the end."""
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", answer[: math_equal.LONGEST + 100])
    text = re.sub(r"\\[!,;: ]|\\\$|\\left|\\right|[$\u00a0]", "", text).strip().rstrip(".")
    return re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)


# --- rows -----------------------------------------------------------------------------------------------------------


def _ours(style: str, examples: int, levels: Collection[int] | None) -> tuple[Rows, Rows]:
    lines = read_lines(_FILE)
    train, test = (_adapt(style, examples, levels, [x for x in lines if x["split"] == s]) for s in ("train", "test"))
    return train, test


def _adapt(style: str, examples: int, levels: Collection[int] | None, rows: Rows) -> Rows:
    """Rows of a dataset as this task has them: `prompt`, `problem`, `solution` (the final answer), `level`. Raises
    DataError, which says what a row lacks.
    """
    solved = [(line["problem"], line["solution"]) for line in read_lines(_FILE) if line["split"] == "train"]
    ask = asker(style, _INSTRUCTION, solved[:: max(1, len(solved) // max(1, examples))][:examples])
    found = []
    for n, row in enumerate(rows):
        problem, answer, level = _read(row, n + 1)
        if levels is None or level in levels:
            found.append({"prompt": ask(problem), "problem": problem, "solution": answer, "level": level})
    if rows and not found:
        raise DataError(f"task: math: no row has one of the levels {sorted(levels or ())} in its column 'level'.")
    return found


def _read(row: Row, number: int) -> tuple[str, str, int]:
    """The problem, its answer, and its level (0: it says none)."""
    problem = next((row[name] for name in ("question", "problem", "prompt") if isinstance(row.get(name), str)), None)
    if problem is None:
        raise DataError(
            f"task: math, row {number}: a dataset has a column 'question' (as GSM8K) or 'problem' (as MATH), and "
            f"'answer' or 'solution'; this one has: {', '.join(row)}."
        )
    for name in ("answer", "solution"):
        given = row.get(name)
        if given is None or (text := str(given).strip()) == "":
            continue
        marked = answer_of(text, words=True)
        if marked or (marked is None and name == "answer"):
            level = re.search(r"\d+", str(row.get("level", "")))
            return problem, marked or text, int(level[0]) if level else 0
    raise DataError(
        f"task: math, row {number} has no answer: neither a column 'answer' nor a 'solution' with \\boxed{{}}, or "
        "with #### in its last line."
    )


#: Conversational prompts; columns `prompt`, `problem`, `solution` (the final answer), `level`.
TASK = dataclasses.replace(configure(), configure=configure)
