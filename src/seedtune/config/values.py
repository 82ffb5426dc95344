"""Values of settings: as the kind that a setting declares, one of its choices, or a rule."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..errors import ConfigError
from ..utils.paths import path_text


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ConfigError, with the nearest choice, when it is none of them."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{hint}")


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError
    return number


def coerce(name: str, kind: str, value: Any) -> Any:
    """`value` as the kind that the field declares. YAML reads 1e-3 as text, so text that is a number counts as one; a
    path counts as text, and a text alone is a list of one.

    Raises ConfigError.
    """
    if value is None and "None" in kind:
        return None
    base = kind.replace(" | None", "")
    if "str" in base:
        value = [path_text(v) for v in value] if isinstance(value, list | tuple) else path_text(value)
    try:
        if base == "bool" and isinstance(value, bool):
            return value
        if base == "int" and not isinstance(value, bool) and (not isinstance(value, float) or value.is_integer()):
            return int(value)
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
    raise ConfigError(f"{name} must be {_KINDS.get(base, base)}, got {value!r} ({type(value).__name__}).")


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
