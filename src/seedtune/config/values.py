"""Values of settings: as the kind that a setting declares, one of its choices, or a rule."""

from __future__ import annotations

import datetime
import difflib
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import yaml

from ..errors import ConfigError
from ..utils.paths import path_text


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ConfigError, with the nearest choice, when it is none of them."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{did_you_mean(value, choices)}")


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """A hint at the nearest choice, to go on from a sentence; empty where none is near."""
    near = difflib.get_close_matches(str(value), choices, 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError
    return number


def coerce(name: str, kind: str, value: Any) -> Any:
    """`value` as the kind that the field declares. YAML reads 1e-3 as text, so text that is a number counts as one; a
    path counts as text, and a text alone is a list of one; values of enumerations, NumPy and torch as Python's own.

    Raises ConfigError.
    """
    value = _plain(value)
    value = [_plain(v) for v in value] if isinstance(value, list | tuple) else value
    if "str" in kind:
        value = [path_text(v) for v in value] if isinstance(value, list) else path_text(value)
    if value is None and "None" in kind:
        return None
    base = kind.replace(" | None", "")
    try:
        if base == "bool" and str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        if base == "int" and not isinstance(value, bool):
            return _whole(value)
        if base == "float | str" and isinstance(value, str) and value.strip().lower() == "auto":
            return "auto"
        if base in ("float", "float | str") and not isinstance(value, bool):
            return _finite(value)
        if base == "str" and isinstance(value, str):
            return value
        if base == "list[float]" and isinstance(value, list | tuple):
            return [_finite(v) for v in value]
        if base == "list[float] | list[dict[str, Any]]" and isinstance(value, list | tuple):
            return [dict(v) if isinstance(v, Mapping) else _finite(v) for v in value]
        if base == "list[str]" and isinstance(value, str):
            return [value]
        if base == "list[str]" and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return list(value)
        if base == "dict[str, Any]" and isinstance(value, str):
            value = yaml.safe_load(value)  # JSON, too, as transformers takes it
        if base == "dict[str, Any]" and isinstance(value, Mapping):
            return dict(value)
        if base == "str | list[str]" and isinstance(value, str | list | tuple):
            return value if isinstance(value, str) else [str(v) for v in value]
    except (TypeError, ValueError, OverflowError, yaml.YAMLError):
        pass
    quoted = " In YAML, text that reads as something else stands in quotes." if _is_read_by_yaml(value, base) else ""
    raise ConfigError(f"{name} must be {_KINDS.get(base, base)}, got {value!r} ({type(value).__name__}).{quoted}")


def _plain(value: Any) -> Any:
    """The text, number or truth value that it stands for: a member of an enumeration (transformers' strategies
    and schedulers), a scalar or an array of NumPy or torch, a dtype or device of torch. Anything else as it is.
    """
    if isinstance(value, Enum):
        value = value.value
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if hasattr(value, "tolist") and hasattr(value, "shape"):
        value = value.tolist()
    return str(value) if isinstance(value, str) else value


def _whole(value: Any) -> int:
    """Raises ValueError for what is no whole number."""
    if isinstance(value, str) and not value.strip().lstrip("+-").replace("_", "").isdigit():
        value = float(value)  # 1e3
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(value)


def _is_read_by_yaml(value: Any, base: str) -> bool:
    """Whether YAML may have made this of a text: of `no` and `on`, of 007, of a date."""
    kinds = (bool, int, float, datetime.date)
    return (
        "str" in base
        and "float" not in base
        and any(isinstance(v, kinds) for v in (value if isinstance(value, list) else [value]))
    )


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a finite number",
    "float | str": "a finite number, or auto",
    "str": "text",
    "list[float]": "a list of numbers",
    "list[str]": "a list of texts",
    "list[float] | list[dict[str, Any]]": "a list of numbers, or of stages with `weights` and `until`",
    "dict[str, Any]": "a mapping",
    "str | list[str]": "a text or a list of texts",
}


Rule = tuple[str, str, float]
OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def parse_rule(rule: str, setting: str = "stop_at") -> Rule:
    """`'eval/correct < 0.5'` as (metric, operator, number). Raises ConfigError that names the setting."""
    match = re.fullmatch(r"\s*(\S+?)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*", rule)
    try:
        if match:
            return match[1], match[2], float(match[3])
    except ValueError:
        pass
    raise ConfigError(f"{setting}: {rule!r} is not of the form 'metric < number' (or <=, >, >=).")
