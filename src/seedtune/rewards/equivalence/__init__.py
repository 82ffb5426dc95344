"""When are two answers the same? A plug that confidence rewards take: by text, by value, by an entailment model, or by
embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from .embeddings import Embeddings
from .entailment import Entailment
from .exact import Exact
from .math_answers import Math

#: What a setting says: a name, or a mapping of a name to a model, with further arguments.
Choice = str | Mapping[str, Any]

_KINDS: dict[str, type[Exact]] = {"exact": Exact, "math": Math, "entailment": Entailment, "embeddings": Embeddings}
_TAKES = "exact, math, {entailment: MODEL} or {embeddings: MODEL, threshold: 0.9}"


def plug_of(choice: Choice) -> Exact:
    """The equivalence of that name: `exact`, `math`, `entailment: MODEL` or `embeddings: MODEL`, as a text or as a
    mapping. It loads nothing until it is used, or until `check`. Raises ConfigError.
    """
    name, more = _read(choice)
    if name not in _KINDS:
        raise ConfigError(f"equivalence is {_TAKES}; got {choice!r}.")
    try:
        return _KINDS[name](**more)
    except TypeError:
        raise ConfigError(f"equivalence: {name} does not take what {choice!r} gives it; write {_TAKES}.") from None


def _read(choice: Any) -> tuple[str, dict[str, Any]]:
    """The name of the equivalence, and its arguments."""
    if isinstance(choice, str):
        name, _, model = (part.strip() for part in choice.partition(":"))
        return name, {"model": model} if model else {}
    if isinstance(choice, Mapping) and choice:
        name, model = next(iter(choice.items()))
        return str(name), {"model": model, **{str(key): value for key, value in list(choice.items())[1:]}}
    return "", {}


__all__ = ["Choice", "Embeddings", "Entailment", "Exact", "Math", "plug_of"]
