"""Arguments of functions that differ from model to model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def accepted(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Of these arguments those that the function takes."""
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in arguments.items() if takes_any or name in parameters}
