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
def resolve(source: str) -> Callable[..., Any]:
    """The function of that name. Raises RewardError that says what was looked for, and where."""
    if source in FUNCTIONS:
        return FUNCTIONS[source]
    path, _, attribute = source.rpartition(":")
    if path.endswith(".py"):
        module = _import_file(path)
    elif source.endswith(".py"):
        raise RewardError(f"reward {source!r} names a file; add the function: {source}:function.")
    else:
        path, _, attribute = source.replace(":", ".").rpartition(".")
        if not path:
            raise RewardError(
                f"there is no built-in reward {source!r} (there are: {', '.join(FUNCTIONS)}). For your own, write "
                "file.py:function or package.module.function."
            )
        module = _import_module(path, source)
    if not callable(function := getattr(module, attribute, None)):
        raise RewardError(f"reward {source!r}: {path} has no function {attribute!r}.")
    return function  # type: ignore[no-any-return]


def _import_file(path: str) -> Any:
    file = local_path(path)
    if not file.is_file():
        raise RewardError(f"reward file {path!r} does not exist (looked in {Path.cwd()}).")
    name = f"seedtune_rewards_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as e:
        raise RewardError(f"reward file {path!r} fails on import:\n{traceback.format_exc(limit=-3)}") from e
    cloudpickle.register_pickle_by_value(module)  # other processes cannot import it by name
    return module


def _import_module(path: str, source: str) -> Any:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(path)
    except ImportError as e:
        raise RewardError(f"reward {source!r}: cannot import {path!r}: {e}.") from e
