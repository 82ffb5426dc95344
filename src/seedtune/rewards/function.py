"""Reward functions: what they are called, and whether they can be called with the columns of a dataset."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from typing import Any

from ..errors import ConfigError, RewardError
from ..tasks.base import Rows
from ..utils.paths import AnyPath, path_text
from .builtin import arguments_of, check_arguments, check_rows, innermost, is_confidence
from .lookup import resolve
from .metric_names import EVALUATION
from .not_functions import check_given, check_one
from .outputs import OUTPUTS

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

    def check_rows(self, rows: Rows, what: str) -> None:
        """Raise DataError when one of ours cannot say what is right for these rows."""
        check_rows(self.function, rows, what)


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
