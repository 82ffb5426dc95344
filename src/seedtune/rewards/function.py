"""Reward functions: what they are called, and whether they can be called with the columns of a dataset."""

from __future__ import annotations

import concurrent.futures._base
import dataclasses
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from typing import Any, NoReturn

import cloudpickle

from ..errors import ConfigError, RewardError
from ..tasks.base import text_of
from ..utils.paths import AnyPath, path_text
from . import event_loop, returned
from .builtin import arguments_of, check_arguments, innermost, is_confidence
from .lookup import resolve
from .metric_names import EVALUATION, check_column, check_metric
from .not_functions import check_given, check_one
from .outputs import OUTPUTS
from .returned import NotRewards, number, rewards_of, shown
from .trace import trace
from .trainer_state import TrainerState

#: What every reward function is given besides the dataset's columns; TRL's names.
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

#: What a function gets that names it among its parameters, one value per completion. group: a number, the same for
#: completions of one member for one prompt, which are then always in one call (where `num_generations` is 1, nothing
#: is given); completion_logprobs, completion_kl_uniform: a list with a number per token that the model chose
#: (`Completion`); environments: that of each completion, as its last call left it (where `environment_factory` makes
#: some; TRL's name); environment_rewards: what its `get_reward` gave, by the name of its class.
ON_REQUEST = ("group", "completion_logprobs", "completion_kl_uniform", "environments", "environment_rewards")

#: Columns that TRL does not pass on.
NOT_GIVEN = ("prompt", "completion", "completion_ids")

#: Files whose frames are not the user's.
_OURS = {__file__, returned.__file__, event_loop.__file__, concurrent.futures._base.__file__}


@dataclass(frozen=True)
class Reward:
    """A reward function: a callable, or its name (`name`, `package.module.function`, `file.py:function`)."""

    source: str | Callable[..., Any]
    #: What it is called in metrics, where its own name is another's already.
    label: str = ""
    #: What `reward_args` give it, by the names of its parameters.
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unbound(self) -> Callable[..., Any]:
        """Without its arguments."""
        return resolve(self.source) if isinstance(self.source, str) else self.source

    @property
    def function(self) -> Callable[..., Any]:
        """What is called, with its arguments. Raises RewardError for a name that leads nowhere."""
        return partial(self.unbound, **self.arguments) if self.arguments else self.unbound

    @property
    def is_confidence(self) -> bool:
        """Whether it needs no labels, and can be earned by saying the same whatever is asked."""
        return is_confidence(self.unbound)

    def bind(self, arguments: Any) -> Reward:
        """With these arguments. Raises ConfigError for those that the function has no parameters for, or that are the
        trainer's to give.
        """
        if not isinstance(arguments, Mapping):
            raise ConfigError(
                f"reward_args: {self.name} needs a mapping of arguments, such as {{equivalence: math}}; got "
                f"{arguments!r}."
            )
        known = self._arguments()
        for name in arguments:
            if name not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes none"
                raise ConfigError(f"reward_args: reward function {self.name!r} has no argument {name!r}; {takes}.")
        return dataclasses.replace(self, arguments=dict(arguments))

    def _arguments(self) -> list[str]:
        """What it can be given besides what every function is called with."""
        function = self.unbound
        if (ours := arguments_of(function)) is not None:
            return list(ours)
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return []
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return [name for name in named if name not in (*GIVEN, *ON_REQUEST, *OUTPUTS)]

    @property
    def name(self) -> str:
        """Its label, or its own name; of a partial, the function's; of an object without a name, the class's (TRL)."""
        function, _ = innermost(self.function)
        return self.label or str(getattr(function, "__name__", None) or type(function).__name__)

    @property
    def reads_outputs(self) -> bool:
        """Whether it sees what the model says of given texts (`outputs.reads_outputs`)."""
        return bool(getattr(innermost(self.unbound)[0], "reads_outputs", False))

    @cached_property
    def outputs(self) -> frozenset[str]:
        """What it asks for of that."""
        if not self.reads_outputs:
            return frozenset()
        return frozenset(inspect.signature(self.function).parameters) & set(OUTPUTS)

    @property
    def _parameters(self) -> list[inspect.Parameter] | None:
        """None: it does not say which it has."""
        try:
            return list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError):
            return None

    @property
    def _named(self) -> list[inspect.Parameter]:
        return [p for p in self._parameters or () if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]

    @property
    def asks(self) -> frozenset[str]:
        """What of `ON_REQUEST` it names among its parameters; none, where it reads given texts."""
        return frozenset(p.name for p in self._named if p.name in ON_REQUEST and not self.reads_outputs)

    @property
    def requires(self) -> frozenset[str]:
        """What of that it cannot be called without."""
        return self.asks & {p.name for p in self._named if p.default is p.empty}

    def check_columns(
        self, columns: Sequence[str], num_generations: int = 1, *, complete: bool = True, what: str = "the dataset"
    ) -> None:
        """Raise RewardError when the function requires a column that the dataset does not have (where these are all
        that there will be), or several completions per member and prompt where there is one, and ConfigError when its
        arguments do not go with the columns.
        """
        if both := [name for name in self.arguments if name in columns]:
            raise ConfigError(
                f"reward_args: {self.name}: {what} has a column {both[0]!r}, which the function gets, too: rename "
                "the column, or leave the argument out."
            )
        check_arguments(self.function, columns)
        given = (self.asks | self.outputs) - (set() if num_generations > 1 else {"group"})
        taken = [c for c in columns if (c in GIVEN and c not in NOT_GIVEN) or c in given]
        if taken:
            raise RewardError(
                f"{what} has a column {taken[0]!r}, a name that the trainer gives to reward functions: rename it."
            )
        parameters, named = self._parameters, self._named
        if parameters is None:
            return
        if "group" in self.requires and num_generations == 1 and "group" not in columns:
            raise RewardError(
                f"reward function {self.name!r} compares completions of one prompt (it requires `group`), and there is "
                "one per member and prompt: set num_generations to 2 or more, with a temperature (seedtune eval: "
                "--samples), or give the parameter a default."
            )
        known = (*columns, *GIVEN, *self.asks, *self.outputs)
        missing = [p.name for p in named if p.default is p.empty and p.name not in known]
        if missing and complete:
            raise RewardError(
                f"reward function {self.name!r} requires {missing[0]!r}, which {what} lacks; its columns are: "
                f"{', '.join(columns)}. Add the column, or give the parameter a default."
            )
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            unwanted = [c for c in (*columns, *GIVEN) if c not in {*NOT_GIVEN, *(p.name for p in named)}]
            if unwanted:
                raise RewardError(
                    f"reward function {self.name!r} is called with every column and {', '.join(GIVEN)}, as in TRL, "
                    f"but does not take {unwanted[0]!r}: add **kwargs to its parameters."
                )


RewardFunc = AnyPath | Callable[..., Any]
RewardFuncs = RewardFunc | Sequence[RewardFunc]


def with_more(funcs: RewardFuncs | None, more: Sequence[Callable[..., Any]]) -> RewardFuncs | None:
    """The user's reward functions, and more of them behind."""
    if not more:
        return funcs
    return [*_as_list(funcs), *more]


def _as_list(funcs: RewardFuncs | None) -> list[Any]:
    given: Any = path_text(funcs)
    return [given] if isinstance(given, str) or callable(given) else list(given or [])


def reward_functions(funcs: RewardFuncs | None, reward_args: Mapping[str, Any] | None = None) -> list[Reward]:
    """Reward functions, each found and callable, and each with a name of its own: `score`, `score_2`, in the order
    given; with the arguments that `reward_args` has under their names. Raises RewardError, ConfigError.
    """
    return _bound(_told_apart(_found(funcs), ()), reward_args or {})


def eval_functions(
    funcs: RewardFuncs | None, rewards: Sequence[Reward], reward_args: Mapping[str, Any] | None = None
) -> list[Reward]:
    """Functions that are measured on the center beside `rewards`, each with a name of its own, which no metric of an
    evaluation has. One that is a reward as well is called as there. Raises RewardError, and ConfigError where
    `reward_args` names a function that is neither among these nor among `rewards`.
    """
    same = {id(reward.unbound): reward.name for reward in rewards if reward.name not in EVALUATION}
    found = [dataclasses.replace(r, label=same.get(id(r.unbound), "")) for r in _found(funcs)]
    found = _bound(_told_apart(found, {*EVALUATION, *(reward.name for reward in rewards)}), reward_args or {})
    names = list(dict.fromkeys(reward.name for reward in (*rewards, *found)))
    if unknown := [name for name in reward_args or {} if name not in names]:
        raise ConfigError(
            f"reward_args: there is no reward function {unknown[0]!r} in this run; there are: {', '.join(names)}."
        )
    return found


def _bound(rewards: Sequence[Reward], reward_args: Mapping[str, Any]) -> list[Reward]:
    return [r.bind(reward_args[r.name]) if r.name in reward_args else r for r in rewards]


def _found(funcs: RewardFuncs | None) -> list[Reward]:
    funcs = path_text(funcs)
    if not (funcs is None or isinstance(funcs, Iterable) or callable(funcs)):
        raise RewardError(f"reward functions are a function or a list of functions; got {funcs!r}.")
    check_given(funcs)
    found = [Reward(path_text(f)) for f in _as_list(funcs)]
    for reward in found:
        check_one(reward.source)
        check_one(innermost(reward.unbound)[0])
    return found


def _told_apart(rewards: Sequence[Reward], taken: Collection[str]) -> list[Reward]:
    """The first of a name keeps it; others get the lowest number that makes a name which none has. Labels may be of
    those `taken`.
    """
    avoided = {*taken, *(reward.name for reward in rewards)}
    made: dict[str, Reward] = {}
    for reward in rewards:
        name = reward.name
        if name in made or (name in taken and not reward.label):
            number = next(n for n in count(2) if f"{name}_{n}" not in avoided)
            reward = dataclasses.replace(reward, label=f"{name}_{number}")
            avoided.add(reward.name)
        made[reward.name] = reward
    return list(made.values())


def asked_for(rewards: Sequence[Reward]) -> frozenset[str]:
    """What of `ON_REQUEST` any of the functions names among its parameters."""
    return frozenset[str]().union(*(reward.asks for reward in rewards))


def full_weights(weights: Sequence[float] | None, rewards: Sequence[Reward]) -> list[float]:
    """One weight per reward function; none given: 1 each. Raises ConfigError."""
    if weights and len(weights) != len(rewards):
        raise ConfigError(f"reward_weights has {len(weights)} numbers for {len(rewards)} reward functions.")
    return list(weights) if weights else [1.0] * len(rewards)


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
            f"reward function {self.reward.name!r} raised {type(error).__name__}: {error}\n"
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
