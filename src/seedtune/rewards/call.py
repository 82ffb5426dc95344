"""A call of reward functions: completions to score together, as TRL gives them, and what comes back."""

from __future__ import annotations

import concurrent.futures._base
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import cloudpickle

from ..errors import RewardError
from ..tasks.base import text_of
from ..utils.torch_settings import settings_kept
from . import event_loop, function, returned
from .builtin import innermost
from .function import Reward
from .metric_names import check_column, check_metric
from .returned import NotRewards, number, rewards_of, shown
from .trace import text_of_error, trace
from .trainer_state import TrainerState

#: Files whose frames are not the user's.
_OURS = {__file__, function.__file__, returned.__file__, event_loop.__file__, concurrent.futures._base.__file__}


@dataclass(frozen=True)
class Batch:
    """Completions to score together. Columns hold one value per completion, and so does what the model gave for them
    where functions ask for it (`ON_REQUEST`, `OUTPUTS`); `state`: fields of `trainer_state`.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: Mapping[str, list[Any]]
    state: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, list[Any]] = field(default_factory=dict)

    def only(self, rows: Sequence[int]) -> Batch:
        """Some of the rows."""

        def of(values: list[Any]) -> list[Any]:
            return [values[n] for n in rows]

        columns, outputs = (
            {name: of(values) for name, values in some.items()} for some in (self.columns, self.outputs)
        )
        return Batch(of(self.prompts), of(self.completions), of(self.completion_ids), columns, self.state, outputs)

    def copied(self) -> Batch:
        """The same values in lists and mappings of their own: a function may empty or change what it is given."""
        prompts, completions, ids = map(_copied, (self.prompts, self.completions, self.completion_ids))
        columns, outputs = _copied(dict(self.columns)), _copied(dict(self.outputs))
        return Batch(prompts, completions, ids, columns, self.state, outputs)

    def units(self) -> list[list[int]]:
        """Rows that only mean something together: of a group, or each by itself."""
        groups: dict[Any, list[int]] = {}
        for n, key in enumerate(self.outputs.get("group") or range(len(self.completions))):
            groups.setdefault(key, []).append(n)
        return list(groups.values())


@dataclass
class Scores:
    """What one reward function returned for a batch: per completion a number or None; and what it logged."""

    rewards: list[float | None]
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


def call(reward: Reward, batch: Batch) -> Scores:
    """Call one reward function by keyword, as TRL does, and check what it returns.

    Raises RewardError, with the prompt, the completion and the traceback, when it raises or returns anything but one
    finite number or None per completion, or when it logs what it may not.
    """
    return call_all([reward], batch)[0]


def call_all(rewards: Sequence[Reward], batch: Batch) -> list[Scores]:
    """Call one after another; asynchronous ones run meanwhile, all at once (as in TRL). Raises RewardError."""
    names = [reward.name for reward in rewards]
    started = [_Call(reward, batch, names) for reward in rewards]
    return [one.scores() for one in started]


def call_here(rewards: Sequence[Reward], batch: Batch) -> list[Scores]:
    """As `call_all`, where the model is run: what they set of torch is set back. Raises RewardError."""
    with settings_kept():
        return call_all(rewards, batch)


class _Call:
    """One function at work on a batch, from when this is made."""

    def __init__(self, reward: Reward, batch: Batch, names: Collection[str]) -> None:
        self.reward, self.batch, self.names = reward, batch, names
        self._logged = Scores([])
        self._refused: ValueError | None = None
        try:
            made = self._start()
            self.is_async = inspect.isawaitable(made)
            self._wait = event_loop.start(made) if self.is_async else lambda: made
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # SystemExit and a cancelled task end a function, not the run
            raise self._error(e) from None

    def _start(self) -> Any:
        """What the function returns; of one that compares completions of a prompt, where there is one, nothing."""
        reward, batch = self.reward, self.batch.copied()
        if reward.requires - {*batch.outputs, *batch.columns}:
            return [None] * len(batch.completions)
        asked = reward.asks | reward.outputs
        return reward.function(
            prompts=batch.prompts,
            completions=batch.completions,
            completion_ids=batch.completion_ids,
            trainer_state=TrainerState.of(batch.state),
            log_extra=self.log_extra,
            log_metric=self.log_metric,
            **{name: _given(name, values) for name, values in batch.outputs.items() if name in asked},
            **batch.columns,
        )

    def scores(self) -> Scores:
        """When it is done. Raises RewardError."""
        count = len(self.batch.completions)
        try:
            self._logged.rewards = rewards_of(self._wait(), count)
        except NotRewards as e:
            where = "" if e.row is None else f"\n{_where(self.batch, e.row)}"
            raise RewardError(f"reward function {self.reward.name!r} {e}{where}") from None
        except KeyboardInterrupt:
            raise
        except BaseException as e:
            raise self._error(e) from None
        if self._refused:  # and the function went on
            raise self._error(self._refused)
        for column, values in self._logged.extra.items():
            if len(values) != count:
                raise RewardError(
                    f"reward function {self.reward.name!r} gave log_extra({column!r}, ...) {len(values)} values for "
                    f"{count} completions: it takes one for each, in the same order."
                )
        return self._logged

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """A column of completions/: one value per completion."""
        self._check(check_column, column)
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            self._refuse(f"log_extra({column!r}, {shown(values)}): give a list, with one value per completion")
        self._logged.extra.setdefault(column, []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        """A metric: its mean over the calls of an iteration, or of an evaluation, is logged."""
        self._check(check_metric, name)
        if not math.isfinite(known := number(value)):
            self._refuse(f"log_metric({name!r}, {shown(value)}): a metric must be a finite number")
        self._logged.metrics.setdefault(name, []).append(known)

    def _check(self, check: Callable[[object, Collection[str]], None], name: object) -> None:
        try:
            check(name, self.names)
        except ValueError as e:
            self._refuse(str(e))

    def _refuse(self, why: str) -> NoReturn:
        self._refused = ValueError(why)
        raise self._refused

    def _error(self, error: BaseException) -> RewardError:
        """For a function that raised: it is called again per row, to show the completion that it fails on."""
        return RewardError(
            f"reward function {self.reward.name!r} raised {type(error).__name__}: {text_of_error(error)}\n"
            f"{_where(self.batch, self._culprit())}\n{trace(error, _OURS)}\n"
            "Rewards are never silently zeroed: fix the function, or return None for completions it cannot score."
        )

    def _culprit(self) -> int:
        units = self.batch.units()
        if len(units) == 1 or self._refused or _is_async(self.reward.function):
            return 0
        for rows in units:
            try:
                call(self.reward, self.batch.only(rows))
            except RewardError:
                return rows[0]
        return 0


def _copied(value: Any) -> Any:
    if type(value) is list:
        return [_copied(item) for item in value]
    return {key: _copied(item) for key, item in value.items()} if type(value) is dict else value


def _given(name: str, values: list[Any]) -> list[Any]:
    """Environments come pickled, as they are of another process of this run."""
    return [value and cloudpickle.loads(value) for value in values] if name == "environments" else values


def _is_async(function: Callable[..., Any]) -> bool:
    function, _ = innermost(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _where(batch: Batch, n: int) -> str:
    return f"  prompt:     {shown(text_of(batch.prompts[n]))}\n  completion: {shown(text_of(batch.completions[n]))}"
