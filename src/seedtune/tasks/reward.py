"""Reward functions: finding them, checking what they ask for, and calling them as TRL does."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle

from ..errors import RewardError
from . import conciseness, countdown, keywords, one_liner, summary
from .base import text_of

BUILTIN: dict[str, Callable[..., Any]] = {
    "conciseness": conciseness.conciseness,
    "answered": conciseness.answered,
    "correct": conciseness.correct,
    "countdown": countdown.countdown,
    "accuracy": countdown.accuracy,
    "keywords": keywords.keywords,
    "explained": keywords.explained,
    "visible_tests": one_liner.visible_tests,
    "hidden_tests": one_liner.hidden_tests,
    "summary": summary.summary,
    "summarised": summary.summarised,
}

#: What every reward function is given besides the dataset's columns; TRL's names.
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

#: Columns that TRL does not pass on.
NOT_GIVEN = ("prompt", "completion", "completion_ids")


@dataclass(frozen=True)
class Reward:
    """A named reward function: a callable, or text (`name`, `package.module.function`, `file.py:function`)."""

    source: str | Callable[..., Any]

    @property
    def function(self) -> Callable[..., Any]:
        return resolve(self.source) if isinstance(self.source, str) else self.source

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise RewardError when the function requires a column that the dataset does not have."""
        taken = [c for c in columns if c in GIVEN and c not in NOT_GIVEN]
        if taken:
            raise RewardError(
                f"the dataset has a column {taken[0]!r}, a name that the trainer gives to reward functions: rename it."
            )
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):
            return
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        missing = [p.name for p in named if p.default is p.empty and p.name not in (*columns, *GIVEN)]
        if missing:
            raise RewardError(
                f"reward function {self.name!r} asks for {missing[0]!r}, which the dataset lacks; its columns are: "
                f"{', '.join(columns)}. Add the column, or give the parameter a default."
            )
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            unwanted = [c for c in (*columns, *GIVEN) if c not in {*NOT_GIVEN, *(p.name for p in named)}]
            if unwanted:
                raise RewardError(
                    f"reward function {self.name!r} is called with every column and {', '.join(GIVEN)}, as in TRL, "
                    f"but does not take {unwanted[0]!r}: add **kwargs to its parameters."
                )


@cache
def resolve(source: str) -> Callable[..., Any]:
    """The function that a text names. Raises RewardError that says what was looked for, and where."""
    if source in BUILTIN:
        return BUILTIN[source]
    path, _, attribute = source.rpartition(":")
    if path.endswith(".py"):
        module = _import_file(path)
    elif source.endswith(".py"):
        raise RewardError(f"reward {source!r} names a file; add the function: {source}:function.")
    else:
        path, _, attribute = source.replace(":", ".").rpartition(".")
        if not path:
            raise RewardError(
                f"there is no built-in reward {source!r} (there are: {', '.join(BUILTIN)}). For your own, write "
                "file.py:function or package.module.function."
            )
        module = _import_module(path, source)
    if not callable(function := getattr(module, attribute, None)):
        raise RewardError(f"reward {source!r}: {path} has no function {attribute!r}.")
    return function  # type: ignore[no-any-return]


def _import_file(path: str) -> Any:
    file = Path(path).expanduser()
    if not file.is_file():
        raise RewardError(f"reward file {path!r} does not exist (looked in {Path.cwd()}).")
    name = f"seedtune_rewards_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as e:
        raise RewardError(f"reward file {path!r} fails on import:\n{traceback.format_exc(limit=-3)}") from e
    cloudpickle.register_pickle_by_value(module)  # no other process can import it by its name
    return module


def _import_module(path: str, source: str) -> Any:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(path)
    except ImportError as e:
        raise RewardError(f"reward {source!r}: cannot import {path!r}: {e}.") from e


@dataclass(frozen=True)
class Batch:
    """Completions to score together: those of one chunk. Columns hold one value a completion."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: Mapping[str, list[Any]]
    state: Mapping[str, Any] = field(default_factory=dict)

    def row(self, n: int) -> Batch:
        columns = {name: [values[n]] for name, values in self.columns.items()}
        return Batch([self.prompts[n]], [self.completions[n]], [self.completion_ids[n]], columns, self.state)


@dataclass
class Scores:
    """What one reward function said of a batch: a number, or None, a completion, and what it logged."""

    rewards: list[float | None]
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


def call(reward: Reward, batch: Batch) -> Scores:
    """Call one reward function by keyword, as TRL does, and check what it returns.

    Raises RewardError, with the prompt, the completion and the traceback, when it raises or returns anything but one
    finite number or None a completion.
    """
    scores = Scores([])

    def log_extra(column: str, values: Sequence[Any]) -> None:
        scores.extra.setdefault(column, []).extend(values)

    def log_metric(name: str, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError(f"log_metric({name!r}, {value}): a metric must be a finite number")
        scores.metrics.setdefault(name, []).append(float(value))

    function = reward.function
    try:
        returned = function(
            prompts=batch.prompts,
            completions=batch.completions,
            completion_ids=batch.completion_ids,
            trainer_state=SimpleNamespace(**batch.state),
            log_extra=log_extra,
            log_metric=log_metric,
            **batch.columns,
        )
        if inspect.iscoroutine(returned):
            returned = asyncio.run(_finish(returned))
    except (Exception, SystemExit) as e:
        raise RewardError(_report(reward, batch, e)) from None
    scores.rewards = _checked(reward, batch, returned)
    return scores


async def _finish(coroutine: Any) -> Any:
    return await coroutine


def _checked(reward: Reward, batch: Batch, returned: Any) -> list[float | None]:
    name, expected = reward.name, len(batch.completions)
    if isinstance(returned, (str, bytes, Mapping)) or not hasattr(returned, "__len__"):
        raise RewardError(
            f"reward function {name!r} returned {_show(returned)} ({type(returned).__name__}); it must return a list "
            f"with one number (or None) for each of the {expected} completions."
        )
    if len(returned) != expected:
        raise RewardError(
            f"reward function {name!r} returned {len(returned)} values for {expected} completions; it must return one "
            "for each, in the same order (None leaves a completion out)."
        )
    rewards: list[float | None] = []
    for n, value in enumerate(returned):
        if value is None:
            rewards.append(None)
            continue
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise RewardError(
                f"reward function {name!r} returned {_show(value)} ({type(value).__name__}); a reward must be a finite "
                f"number, or None to leave the completion out.\n{_where(batch, n)}"
            )
        rewards.append(number)
    return rewards


def _report(reward: Reward, batch: Batch, error: BaseException) -> str:
    """The message for a function that raised: calls it again row by row to show the completion that it fails on."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    trace = "".join(traceback.format_list(frames)) + f"{type(error).__name__}: {error}"
    culprit = 0
    if len(batch.completions) > 1 and not inspect.iscoroutinefunction(reward.function):
        for n in range(len(batch.completions)):
            try:
                call(reward, batch.row(n))
            except RewardError:
                culprit = n
                break
    return (
        f"reward function {reward.name!r} raised {type(error).__name__}: {error}\n{_where(batch, culprit)}\n{trace}\n"
        "Rewards are never silently zeroed: mend the function, or return None for completions it cannot score."
    )


def _where(batch: Batch, n: int) -> str:
    return f"  prompt:     {_show(text_of(batch.prompts[n]))}\n  completion: {_show(text_of(batch.completions[n]))}"


def _show(value: Any, limit: int = 300) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
