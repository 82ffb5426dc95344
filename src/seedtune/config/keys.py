"""Names of settings: those that are unknown or refused are all told at once, each with its reason."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

from ..errors import ConfigError
from .refused import REFUSED

C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])

#: How alike a name and its misspelling are, at least (difflib's ratio): one letter in seven may be wrong. Names that
#: are less alike mean something else (`stop_strings`, `stop_at`).
_ALIKE = 0.86
_HELP = " `seedtune train --help` lists all settings."
_MEANT = "unknown, d"


def check_keys(cls: type[Any], given: Iterable[str]) -> None:
    """Raise ConfigError for names that `cls`, a dataclass of settings, does not have: all of them, each with the reason
    why it is refused, or the nearest name.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    if wrong := {key: _reason(key, names) for key in given if key not in names}:
        raise ConfigError(_told(wrong))


def is_known(key: str) -> bool:
    """Whether it is a key of another trainer, which is refused with its reason."""
    return key in REFUSED


def check_inner_keys(name: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise ConfigError for keys of the mapping `name` that are none of `known`, all of them."""
    known = list(known)
    wrong = {f"{name}: {key}": _reason(str(key), known) for key in given if key not in known}
    if wrong:
        raise ConfigError(f"{_told(wrong, helped='')} {name} takes {', '.join(known)}.")


def checks_keys(cls: type[C]) -> type[C]:
    """A class decorator: the constructor itself explains why keys are unknown, as TRL users call it first; and settings
    that are assigned to, what to do instead.
    """
    made = cls.__init__

    def refuse(self: Any, name: str, value: Any) -> None:
        made_anew = f"make others with dataclasses.replace(args, {name}=...), and give those to ESTrainer"
        raise dataclasses.FrozenInstanceError(f"settings do not change, so {name} cannot be assigned to: {made_anew}")

    @wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        check_keys(type(self), kwargs)
        made(self, *args, **kwargs)

    cls.__init__, cls.__setattr__ = init, refuse  # type: ignore[method-assign]  # on purpose
    return cls


def checks_arguments(settings: type[Any]) -> Callable[[F], F]:
    """A decorator of a function: arguments that it does not have are explained as keys are, and names of `settings`,
    which its `args` takes.
    """

    def decorate(function: F) -> F:
        names = list(signature(function).parameters)

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            if strange := [key for key in kwargs if key not in names]:
                own = {f.name: f"write args={settings.__name__}({f.name}=...)" for f in dataclasses.fields(settings)}
                raise ConfigError(_told({key: own.get(key) or _reason(key, names) for key in strange}, "argument", ""))
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]  # its signature is the function's

    return decorate


def _told(wrong: Mapping[str, str | None], what: str = "setting", helped: str = _HELP) -> str:
    """The message, in one line for one name; `wrong`: reasons, None where the name means nothing."""
    if len(wrong) == 1:
        ((key, reason),) = wrong.items()
        if reason is None:
            return f"unknown {what} {key!r}.{helped}"
        if reason.startswith(_MEANT):
            return f"unknown {what} {key!r}. D{reason.removeprefix(_MEANT)}"
        return f"{key!r} is no {what} here: {reason}."
    lines = [f"  {key}: {'unknown' if reason is None else reason}" for key, reason in wrong.items()]
    more = helped if None in wrong.values() else ""
    return f"{len(wrong)} {what}s cannot be used.{more}\n" + "\n".join(lines)


def _reason(key: str, known: Iterable[str]) -> str | None:
    """Why a key is no setting, or which it was meant to be; None: neither is known."""
    if key in REFUSED:
        return REFUSED[key]
    names = [*known, *REFUSED]
    plain = key.lower().replace("-", "_")
    near = [plain] if plain in names else difflib.get_close_matches(plain, names, 1, _ALIKE)
    near = near or [name for name in names if sorted(name) == sorted(plain)]  # letters swapped in a short name
    if not near:
        return None
    more = f" That is no setting here: {REFUSED[near[0]]}." if near[0] in REFUSED and near[0] not in known else ""
    return f"{_MEANT}id you mean {near[0]!r}?{more}"


# --- settings of another trainer --------------------------------------------------------------------------------------


def explain_arguments(cls: type[Any], args: Any) -> str:
    """What to write instead of `args`, which is no `cls` (`ESConfig`): for a dataclass (`GRPOConfig`,
    `TrainingArguments`) or a mapping, which of the values that were set can be taken over, and why others cannot.
    """
    kind = type(args).__name__
    needed = f"args must be an {cls.__name__}, got {kind}"
    if isinstance(args, Mapping):
        given = {str(key): value for key, value in args.items()}
    elif dataclasses.is_dataclass(args) and not isinstance(args, type):
        given = _values_set(args)
    else:
        return f"{needed}: write {cls.__name__}(output_dir=...)."
    names = [f.name for f in dataclasses.fields(cls)]
    usable, wrong = {}, {}
    for key, value in given.items():
        if key not in names:
            wrong[key] = _reason(key, names) or "unknown"
        elif key in _OTHER_MEANING and not isinstance(args, Mapping):
            wrong[key] = _OTHER_MEANING[key]
        else:
            try:
                cls(**{key: value})
                usable[key] = value
            except ConfigError as e:
                wrong[key] = str(e)
    call = ", ".join(f"{key}={value!r}" for key, value in usable.items())
    lines = [f"{needed}. Of what it sets, this can be taken over:", f"  {cls.__name__}({call})"]
    if wrong:
        said = [reason if reason.startswith(f"{key} ") else f"{key}: {reason}" for key, reason in wrong.items()]
        lines += ["and this cannot be used:", *(f"  {line}" for line in said)]
    return "\n".join(lines)


#: Settings of gradient training that have the name of one here, but another scale.
_OTHER_MEANING = {
    "learning_rate": "a step of ES is of another scale than one of a gradient: leave it out, or set it with sigma",
    "num_generations": "ES compares members, so that one completion per member and prompt is enough: leave it out, or "
    "set it, with a temperature, for rewards that compare completions",
}


#: Without these a `TrainingArguments` may refuse to be made on this machine.
_MAY_BE_NEEDED = ("output_dir", "use_cpu", "bf16", "fp16")


def _values_set(args: Any) -> dict[str, Any]:
    """The fields of a dataclass that someone set: not the defaults, nor what follows from other fields."""
    values = {f.name: _plain(getattr(args, f.name, None)) for f in dataclasses.fields(args) if f.init}
    always: dict[str, Any] = {key: values[key] for key in _MAY_BE_NEEDED if key in values}

    def made_from(given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an instance that is made of these alone; raises whatever the class raises."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = type(args)(**given)
        return {f.name: _plain(getattr(made, f.name, None)) for f in dataclasses.fields(made)}

    fields = {f.name: _plain(f.default) for f in dataclasses.fields(args)}
    try:
        defaults = {**made_from(always), **{key: fields[key] for key in always}}
    except Exception:  # a class of the user's with its own checks
        defaults = fields
    given = {key: value for key, value in values.items() if value != defaults[key]}
    for key in reversed(given):  # fields of a subclass follow from those of its base
        rest = {k: v for k, v in given.items() if k != key}
        try:
            follows = made_from(rest)[key] == given[key]
        except Exception:  # they do not go without it
            follows = False
        given = rest if follows else given
    return given


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
