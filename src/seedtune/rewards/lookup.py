"""Reward functions by name: built-in ones, `package.module.function`, and `file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle

from ..errors import RewardError
from ..utils.paths import local_path
from .builtin import FUNCTIONS


@cache
def resolve(source: str, kind: str = "reward") -> Callable[..., Any]:
    """The function of that name. Raises RewardError that says what `kind` was looked for, and where."""
    if kind == "reward" and source in FUNCTIONS:
        return FUNCTIONS[source]
    if "," in source:
        raise RewardError(f"{kind} {source!r} has a comma: give several as a list, [a, b] in YAML, a b behind a flag.")
    path, _, attribute = source.rpartition(":")
    if path.endswith(".py"):
        module = _import_file(path, kind)
    elif source.endswith(".py"):
        raise RewardError(f"{kind} {source!r} names a file; add the function: {source}:function.")
    elif "/" in source:
        raise RewardError(
            f"{kind} {source!r} is no function: for your own, write file.py:function or package.module.function. A "
            "reward model is loaded within a function, which returns what it says of each completion."
        )
    else:
        path, _, attribute = source.replace(":", ".").rpartition(".")
        if not path:
            known = f" (there are: {', '.join(FUNCTIONS)})" if kind == "reward" else ""
            raise RewardError(
                f"there is no built-in {kind} {source!r}{known}. For your own, write "
                "file.py:function or package.module.function."
            )
        module = _import_module(path, f"{kind} {source!r}")
    function: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(function):
        raise RewardError(f"{kind} {source!r}: {path} has no function {attribute!r}.")
    return function


def _import_file(path: str, kind: str) -> Any:
    file = local_path(path)
    if not file.is_file():
        raise RewardError(f"{kind} file {path!r} does not exist (looked in {Path.cwd()}).")
    name = f"seedtune_rewards_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _add_to_path(file.parent)  # it may import what lies beside it, as a script does, when it is called, too
    try:
        spec.loader.exec_module(module)
    except BaseException as e:
        raise RewardError(f"{kind} file {path!r} fails on import:\n{traceback.format_exc(limit=-3)}") from e
    cloudpickle.register_pickle_by_value(module)  # other processes cannot import it by name
    return module


def _import_module(path: str, what: str) -> Any:
    _add_to_path(Path.cwd())
    try:
        return importlib.import_module(path)
    except ImportError as e:
        raise RewardError(f"{what}: cannot import {path!r}: {e}.") from e


def _add_to_path(folder: Path) -> None:
    """Behind what is there, which it must not hide. Processes that are started later have it, too."""
    if (place := str(folder.absolute())) not in sys.path:
        sys.path.append(place)
