"""The tools and environments of a run: checked, described to the model, and pickled for the processes that run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle

from ..errors import ConfigError, DataError, RewardError
from ..rewards.lookup import resolve
from ..rewards.serialize import pickle_by_value
from ..rewards.sources import with_sources
from .session import Contents, methods_of, named

#: By name; None: one for all rows.
Factories = Mapping[str | None, Callable[[], Any]]


@dataclass(frozen=True)
class ToolSet:
    """What the model may call. `environments`: the names that a row's column `environment` may have (None: there is one
    for all rows; none at all: there are only tools). `schemas`: by these names (None where there are none), what chat
    templates are told. `rewarding`: classes of environments with a method `get_reward`. `payload`: for `session`.
    """

    schemas: Mapping[str | None, tuple[dict[str, Any], ...]]
    environments: tuple[str | None, ...]
    rewarding: tuple[str, ...]
    payload: bytes | Contents

    @staticmethod
    def of(tools: Any, environment_factory: Any, *, in_process: bool = False, by_value: bool = False) -> ToolSet | None:
        """From the arguments of the trainer, TRL's; None: neither was given. An environment of each kind is made once,
        to see what its methods are. `in_process`: they are called in this process; `by_value`: the user's own are
        pickled with the code of their modules. Raises ConfigError.
        """
        if not tools and environment_factory is None:
            return None
        functions = _functions(tools)
        factories = _factories(environment_factory)
        classes = {name: type(_made(name, factory)) for name, factory in factories.items()}
        for name, kind in classes.items():
            if not callable(getattr(kind, "reset", None)):
                raise ConfigError(
                    f"environment_factory: {_said(name)}{kind.__name__} has no method reset. Define "
                    "reset(self, **kwargs): it gets the row, begins an episode, and returns what the model is told "
                    "first (text, or None)."
                )
        common = [_schema(function, named(function)) for function in functions]
        schemas = {
            name: (*common, *(_schema(method, method.__name__) for method in methods_of(kind)))
            for name, kind in classes.items()
        } or {None: tuple(common)}
        _check_names(schemas)
        rewarding = dict.fromkeys(kind.__name__ for kind in classes.values() if hasattr(kind, "get_reward"))
        contents = Contents(functions, factories)
        payload = contents if in_process else _pickled(contents, by_value=by_value)
        return ToolSet(schemas, tuple(factories), tuple(rewarding), payload)

    @property
    def by_row(self) -> bool:
        """Whether rows name their environment."""
        return bool(self.environments) and None not in self.environments

    def environment_of(self, columns: Mapping[str, Any]) -> str | None:
        """Which environment a row has. Raises DataError."""
        if not self.by_row:
            return None
        name = columns.get("environment")
        if name not in self.environments:
            known = ", ".join(map(repr, self.environments))
            raise DataError(
                f"a row has environment={name!r}, and environment_factory has {known}: every row needs a column "
                "'environment' with one of these names."
            )
        return str(name)

    @property
    def names(self) -> list[str]:
        """Of everything that the model may call."""
        return list(dict.fromkeys(s["function"]["name"] for known in self.schemas.values() for s in known))


def _check_names(schemas: Mapping[str | None, Sequence[Mapping[str, Any]]]) -> None:
    for name, known in schemas.items():
        names = [schema["function"]["name"] for schema in known]
        if not names:
            raise ConfigError(f"environment_factory: {_said(name)}has no public methods, so the model can do nothing.")
        if twice := [n for n in names if names.count(n) > 1]:
            raise ConfigError(f"two tools are called {twice[0]!r}: the model could not tell them apart.")


def _pickled(contents: Contents, *, by_value: bool) -> bytes:
    try:
        own = (*contents.tools, *contents.factories.values()) if by_value else ()
        modules = [pickle_by_value(function) for function in own]
        pickled = bytes(cloudpickle.dumps(contents))
        return with_sources(pickled, modules) if by_value else pickled
    except Exception as e:
        raise ConfigError(
            f"the tools cannot be sent to another process: {type(e).__name__}: {e}. What a tool refers to must be "
            "picklable: open connections and files within it; or set reward_workers: 0 to call tools in this "
            "process (then without a time limit)."
        ) from None


def _functions(tools: Any) -> tuple[Callable[..., Any], ...]:
    if tools is None:
        return ()
    if callable(tools) or isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise ConfigError(f"tools is a list of functions; got {tools!r}.")
    found = tuple(_named(tool, "tools") for tool in tools)
    for tool in found:
        if not callable(tool):
            raise ConfigError(f"tools: {tool!r} is no function. As in TRL, a tool is a function with type hints.")
    return found


def _named(given: Any, setting: str) -> Any:
    """What a text (`file.py:function`, `package.module.function`) names; anything else is itself."""
    if not isinstance(given, str):
        return given
    try:
        return resolve(given, "tool")
    except RewardError as e:
        raise ConfigError(f"{setting}: {e}") from None


def _factories(given: Any) -> Factories:
    if given is None:
        return {}
    named = dict(given) if isinstance(given, Mapping) else {None: given}
    factories = {name: _named(factory, "environment_factory") for name, factory in named.items()}
    if not factories:
        raise ConfigError("environment_factory is an empty dictionary: name at least one environment.")
    for name, factory in factories.items():
        if not callable(factory) or not isinstance(name, str | None):
            raise ConfigError(
                f"environment_factory is a class, a function that makes an environment, or a dictionary of such by "
                f"name; got {name!r}: {factory!r}."
            )
    return factories


def _made(name: str | None, factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except Exception as e:
        raise ConfigError(
            f"environment_factory: {_said(name)}cannot be made: it is called without arguments and raised "
            f"{type(e).__name__}: {e}."
        ) from e


def _schema(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """As transformers makes it of type hints and docstring, with what goes wrong in words."""
    from transformers.utils import get_json_schema  # type: ignore[attr-defined]  # not where tools only run
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    try:
        schema: dict[str, Any] = get_json_schema(function)
    except (DocstringParsingException, TypeHintParsingException, ValueError, TypeError) as e:
        raise ConfigError(
            f"tool {name!r} cannot be described to the model: {e} A tool needs type hints, and a docstring with a line "
            "on what it does and a section Args: that says what each argument is (Google style, as in TRL)."
        ) from None
    parameters = schema["function"]["parameters"]
    hidden = [key for key in parameters.get("properties", {}) if key == "self"]
    for key in hidden:
        del parameters["properties"][key]
    parameters["required"] = [key for key in parameters.get("required", []) if key not in hidden]
    return schema


def _said(name: str | None) -> str:
    return "" if name is None else f"{name!r}: "
