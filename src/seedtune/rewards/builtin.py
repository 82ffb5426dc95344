"""Built-in reward functions, by name: those of the tasks, and those of confidence, calibration and likelihood with the
arguments that `reward_args` may give them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from .. import sandbox
from ..errors import ConfigError, DataError, RewardError
from ..tasks.base import Rows
from ..tasks.code import unit_tests as programs
from ..tasks.code.columns import known as has_tests
from ..tasks.code.columns import needed as tests_needed
from ..tasks.code.unit_tests import limits, unit_tests
from ..tasks.registry import FUNCTIONS as OF_TASKS
from .answers import check_pattern
from .calibration import calibration, judge_of, likelihood_calibration, majority_calibration
from .confidence import discrete_semantic_entropy, majority, self_certainty, semantic_density, semantic_entropy
from .equivalence import plug_of
from .likelihood import log_likelihood, preference_margin

#: Rewards without labels, which a model can earn by saying the same whatever it is asked.
CONFIDENCE = (semantic_entropy, discrete_semantic_entropy, semantic_density, majority, self_certainty)
CALIBRATION = (calibration, majority_calibration, likelihood_calibration)
#: Of given completions, which are read.
LIKELIHOOD = (log_likelihood, preference_margin)
_OWN = {function.__name__: function for function in (*CONFIDENCE, *CALIBRATION, *LIKELIHOOD)}
FUNCTIONS: dict[str, Callable[..., Any]] = {**OF_TASKS, **_OWN}

#: Those that compare with the column `solution`.
_COMPARING = (*CALIBRATION, *(OF_TASKS[name] for name in ("conciseness", "correct", "math_correct")))
_COMPARE = ("equivalence", "answer")
_ARGUMENTS: dict[str, Sequence[str]] = {
    **{f.__name__: _COMPARE for f in CONFIDENCE},
    **{f.__name__: (*_COMPARE, "correct", "correctness") for f in CALIBRATION},
    "semantic_entropy": (*_COMPARE, "per_token"),
    "self_certainty": (),
    "log_likelihood": (),
    "preference_margin": ("per_token",),
    "unit_tests": ("partial", "seconds", "megabytes"),
}


def innermost(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What a partial calls in the end, and the arguments that it gives."""
    given: dict[str, Any] = {}
    while isinstance(function, partial):
        given = {**function.keywords, **given}
        function = function.func
    return function, given


def arguments_of(function: Callable[..., Any]) -> Sequence[str] | None:
    """Names of arguments that one of ours takes besides what every function is called with; None: it is another's."""
    return next((_ARGUMENTS[name] for name in _ARGUMENTS if FUNCTIONS[name] is function), None)


def is_confidence(function: Callable[..., Any]) -> bool:
    """Whether it, or what a partial calls, is a reward that needs no labels."""
    return any(innermost(function)[0] is ours for ours in CONFIDENCE)


def check_arguments(function: Callable[..., Any], columns: Sequence[str]) -> None:
    """Raise ConfigError or RewardError when one of ours, or a partial of it, has arguments that it cannot be called
    with, or not with these columns: a model that is not there, no column with solutions. Raise SandboxError when it
    runs code, and there is no sandbox.
    """
    ours, given = innermost(function)
    if getattr(ours, "runs_code", False):
        sandbox.check()
    if ours is unit_tests:
        _check_tests(given, columns)
    if arguments_of(ours) is None:
        return
    if "equivalence" in given:
        plug_of(given["equivalence"]).check()
    if given.get("answer") is not None:
        check_pattern(given["answer"])
    for name, kinds in (("per_token", (bool,)), ("correctness", (int, float))):
        if not isinstance(given.get(name, kinds[0]()), kinds):
            raise ConfigError(f"reward_args: {ours.__name__}: {name} is a {kinds[0].__name__}; got {given[name]!r}.")
    if any(ours is f for f in CALIBRATION):
        _check_judge(ours.__name__, given.get("correct"), columns)


def check_rows(function: Callable[..., Any], rows: Rows, what: str) -> None:
    """Raise DataError when one of ours, or a partial of it, cannot say what is right for these rows: no tests can be
    read, or a solution is missing. `what`: what the rows are called.
    """
    ours, given = innermost(function)
    if ours is unit_tests:
        programs.check_rows(rows, what)
    if any(ours is f for f in _COMPARING) and given.get("correct") is None:
        _check_solutions(ours.__name__, rows, what)


def _check_solutions(name: str, rows: Rows, what: str) -> None:
    table: Any = rows  # of datasets: the column alone is read, and no others
    solutions = table["solution"] if hasattr(rows, "column_names") else [row.get("solution") for row in rows]
    lacking = [number for number, value in enumerate(solutions, 1) if value is None or not str(value).strip()]
    if lacking:
        raise DataError(
            f"reward function {name!r} compares completions with the column 'solution', which is empty in "
            f"{len(lacking)} of {len(solutions)} rows of {what} (the first is row {lacking[0]}): fill it in, or leave "
            "these rows out."
        )


def _check_tests(given: Mapping[str, Any], columns: Sequence[str]) -> None:
    limits(**{name: given[name] for name in ("seconds", "megabytes") if name in given})
    if not isinstance(given.get("partial", False), bool):
        raise ConfigError(f"reward_args: unit_tests: partial is true or false; got {given['partial']!r}.")
    if not has_tests(columns):
        raise RewardError(
            f"reward function 'unit_tests' runs the tests that the dataset has, in columns {tests_needed()}; its "
            f"columns are: {', '.join(columns)}."
        )


def _check_judge(name: str, correct: Any, columns: Sequence[str]) -> None:
    if correct is not None:
        from .function import Reward  # which calls what stands here

        Reward(judge_of(correct)).check_columns(columns)
    elif "solution" not in columns:
        raise RewardError(
            f"reward function {name!r} compares answers with the column 'solution', which the dataset lacks; its "
            f"columns are: {', '.join(columns)}. Add it, or name a reward function that gives 1 for what is right: "
            f"reward_args: {{{name}: {{correct: NAME}}}}."
        )
