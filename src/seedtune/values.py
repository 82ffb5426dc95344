"""Values of settings: as the kind that a setting declares, one of its choices, or a rule."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ConfigError


def one_of(name: str, value: str, choices: list[str]) -> None:
    """Raises ConfigError, with the nearest choice, when it is none of them."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{hint}")


def coerce(name: str, kind: str, value: Any) -> Any:
    """`value` as the kind that the field declares. YAML reads 1e-3 as text, so text that is a number counts as one.

    Raises ConfigError.
    """
    if value is None and "None" in kind:
        return None
    base = kind.replace(" | None", "")
    try:
        if base == "bool" and isinstance(value, bool):
            return value
        if base == "int" and not isinstance(value, bool) and (not isinstance(value, float) or value.is_integer()):
            return int(value)
        if base == "float | str" and isinstance(value, str) and value.strip().lower() == "auto":
            return "auto"
        if base in ("float", "float | str") and not isinstance(value, bool):
            number = float(value)
            if not math.isfinite(number):
                raise ValueError
            return number
        if base == "str" and isinstance(value, str):
            return value
        if base == "list[float]" and isinstance(value, list | tuple):
            numbers = [float(v) for v in value]
            if not all(map(math.isfinite, numbers)):
                raise ValueError
            return numbers
        if base == "list[str]" and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return list(value)
        if base == "dict[str, Any]" and isinstance(value, Mapping):
            return dict(value)
        if base == "str | list[str]" and isinstance(value, str | list | tuple):
            return value if isinstance(value, str) else [str(v) for v in value]
    except (TypeError, ValueError, OverflowError):
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
    "dict[str, Any]": "a mapping",
    "str | list[str]": "a text or a list of texts",
}


Rule = tuple[str, str, float]
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}


def parse_rule(rule: str) -> Rule:
    """`'eval/correct < 0.5'` as (metric, operator, number). Raises ConfigError."""
    match = re.fullmatch(r"\s*(\S+?)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*", rule)
    try:
        if match:
            return match[1], match[2], float(match[3])
    except ValueError:
        pass
    raise ConfigError(f"stop_at: {rule!r} is not of the form 'metric < number' (or <=, >, >=).")
