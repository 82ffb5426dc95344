"""Code that is run on unit tests, which the dataset has: the reward is whether it passes them, or how many of them.

task: code
task_args: {steps: [1, 2], partial: true}
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial as bind
from typing import Any, TypeVar

from ...errors import ConfigError, DataError
from ...sandbox import Limits
from ..base import Row, Rows, Task, text_of, user
from .columns import completed, tests_of
from .problems import Problem, check_args, problems
from .verdict import BadTests, Pairs, Tests, Verdict, check, code_of

log = logging.getLogger(__name__)

MIB = 2**20
#: Rows whose tests are read before a run, at most.
_LOOKED_AT = 1000
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
U = TypeVar("U")


def in_sandbox(function: F) -> F:
    """Mark a reward function that runs code: it is looked whether there is a sandbox before a run begins."""
    function.runs_code = True  # type: ignore[attr-defined]  # a mark: functions take any
    return function


def at_once(act: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """Act on all items, as many at a time as there are cores."""
    with ThreadPoolExecutor(min(len(items), os.cpu_count() or 1) or 1) as threads:
        return list(threads.map(act, items))


def limits(seconds: Any = 5.0, megabytes: Any = 512) -> Limits:
    """Those of a program under test. Raises ConfigError."""
    if type(megabytes) is not int:
        raise ConfigError(f"megabytes is a whole number; got {megabytes!r}.")
    return Limits(seconds=seconds, memory=megabytes * MIB)


@in_sandbox
def unit_tests(
    completions: list[Any],
    prompts: list[Any] | None = None,
    partial: bool = False,
    seconds: float = 5.0,
    megabytes: int = 512,
    log_extra: Callable[..., None] = lambda *_: None,
    log_metric: Callable[..., None] = lambda *_: None,
    **columns: list[Any],
) -> list[float | None]:
    """1 when the code of a completion, its last fenced block, passes all tests of its row; with `partial` the share
    that it passes. None where the tests cannot be run, whatever the code: logged as the metric `broken_tests` and, with
    the reason, as the column `test_failure`. Raises DataError where no row of the dataset has tests.
    """
    rows = [{k: v[n] for k, v in columns.items() if isinstance(v, list)} for n in range(len(completions))]
    within = limits(seconds, megabytes)

    def judge(number: int) -> Verdict:
        row, text = rows[number], text_of(completions[number])
        code = completed(code_of(text), text_of(prompts[number]) if prompts else "", row, text)
        try:
            return check(code, tests_of(row, code), within)
        except BadTests as e:
            return Verdict(0, 1, broken=str(e))

    verdicts = at_once(judge, range(len(completions)))
    for verdict in verdicts:
        log_metric("broken_tests", float(bool(verdict.broken)))
    log_extra("test_failure", [f"tests that do not run: {v.broken}" if v.broken else v.failure for v in verdicts])
    if verdicts and all(v.broken for v in verdicts):
        raise DataError(f"the tests of the dataset do not run, whatever the code: {verdicts[0].broken}")
    return [None if v.broken else v.share if partial else float(v.all) for v in verdicts]


@in_sandbox
def all_tests(completions: list[Any], **columns: Any) -> list[float | None]:
    """1 when the code passes all tests of its row."""
    quiet = {name: value for name, value in columns.items() if name not in ("log_extra", "log_metric", "partial")}
    return unit_tests(completions, **quiet)


def asserts(cases: Sequence[tuple[list[int], Any]]) -> list[str]:
    """Cases as tests."""
    return [f"assert solve({argument}) == {result!r}" for argument, result in cases]


def fenced(code: str) -> str:
    """Code as a completion has it."""
    return f"```python\n{code}```"


def configure(
    steps: Sequence[int] = (1, 2),
    problems: int = 200,
    test_problems: int = 64,
    partial: bool = False,
    seconds: float = 5.0,
    seed: int = 0,
) -> Task:
    """Problems with these numbers of steps, or another dataset's (`dataset_name`); `partial`: the reward is the share
    of tests that pass, and not whether all do. Raises ConfigError.
    """
    check_args(steps, problems=problems, test_problems=test_problems, seed=seed)
    limits(seconds)
    if type(partial) is not bool:
        raise ConfigError(f"task_args: partial is true or false; got {partial!r}.")
    return Task(
        name="code",
        load=lambda: (_rows(problems, steps, seed, False), _rows(test_problems, steps, seed, True)),
        rewards=(bind(unit_tests, partial=partial, seconds=seconds) if partial or seconds != 5 else unit_tests,),
        gold_metrics=(bind(all_tests, seconds=seconds) if seconds != 5 else all_tests,),
        reference=lambda row: fenced(row["solution"]),
        full_marks=1.0,
        hacks=(
            lambda row: "",
            lambda row: fenced("import sys\nsys.exit(0)\n"),
            lambda row: fenced("class Any:\n    def __eq__(self, other): return True\ndef solve(xs): return Any()\n"),
            lambda row: fenced("def solve(xs):\n    raise SystemExit(0)\n"),
            lambda row: fenced(f"def solve(xs): return {row['example']!r}\n"),
        ),
        defaults={"max_completion_length": 200},
        configure=configure,
        adapt=adapt,
    )


def adapt(rows: Rows) -> Rows:
    """Rows of a dataset with tests, their prompts worded as ours. Rows whose tests cannot be read are left out, which
    is logged. Raises DataError where that is all of them.
    """
    tests, says = _read(rows)
    if not tests:
        raise DataError(f"task: code: {says}")
    if says:
        log.warning("task: code: %s They are left out.", says)
    return [{**rows[n], "prompt": _asked(rows[n], found)} for n, found in tests.items()]


def check_rows(rows: Rows, what: str) -> None:
    """Before a run: that `unit_tests` can be used alone with these rows, of which the first thousand are looked at. It
    is logged where some have tests that cannot be read. Raises DataError where that is all of them.
    """
    tests, says = _read([rows[n] for n in range(min(len(rows), _LOOKED_AT))])
    if not tests:
        raise DataError(
            f"reward function 'unit_tests': {what}: {says} No completion would get a reward: give each row tests that "
            "can fail (docs/guides/code.md)."
        )
    if says:
        log.warning(
            "reward function 'unit_tests': %s: %s Completions for such rows get no reward; task: code leaves them out.",
            what, says,
        )  # fmt: skip


def _read(rows: Rows) -> tuple[dict[int, Tests], str]:
    """The tests of those rows that have some, by index, and what is wrong with the others, in words."""
    tests, wrong = dict[int, Tests](), dict[int, str]()
    for number in range(len(rows)):
        try:
            tests[number] = tests_of(rows[number], "")
        except BadTests as e:
            wrong[number] = str(e)
    for number, why in wrong.items():
        return tests, f"the tests of {len(wrong)} of {len(rows)} rows cannot be read. Row {number + 1}: {why}."
    return tests, ""


def _asked(row: Row, tests: Tests) -> Any:
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        return prompt
    if isinstance(tests, Pairs):
        how = "Write a Python program that reads from standard input and prints the answer."
    elif "entry_point" in row:
        how = f"Complete the Python function `{row['entry_point']}`."
    else:
        how = f"Write Python code. It has to pass tests such as:\n\n{tests.tests[0]}"
    return user(f"{prompt.strip()}\n\n{how}\n\nAnswer with the code in a fenced block.")


def _rows(count: int, steps: Sequence[int], seed: int, held_out: bool) -> Rows:
    return [_row(made) for made in problems(count, steps, seed, held_out)]


def _row(made: Problem) -> Row:
    argument, result = made.visible[0]
    asked = (
        f"Write a Python function `solve(xs)`. It gets a list of integers: {made.words}. For example, "
        f"`solve({argument})` returns `{result}`. Answer with the function in a fenced block of code."
    )
    tests = asserts((*made.visible, *made.hidden))
    return {"prompt": user(asked), "tests": tests, "solution": made.solution, "example": result, "steps": made.steps}


TASK = configure()
