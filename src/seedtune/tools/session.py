"""In the process that runs tools: the conversations that are open there, each with its environment.

Nothing here needs torch or transformers: such a process starts as fast as one that scores.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import cloudpickle
import numpy as np

from ..errors import RewardError
from ..utils.alarm import Late, alarm
from .results import Outcome, ToolResult

#: Methods of an environment that the model cannot call.
NOT_TOOLS = ("reset", "get_reward")
#: The longest result, in characters: a model's context is shorter.
_LONGEST = 1_000_000


@dataclass(frozen=True)
class Contents:
    """What is pickled: the tools, and what makes environments. `free`: environments that no conversation has now, by
    name: made once, reset often (as in TRL).
    """

    tools: Sequence[Callable[..., Any]]
    factories: Mapping[str | None, Callable[[], Any]]
    free: dict[str | None, list[Any]] = field(default_factory=lambda: defaultdict(list), compare=False)


def named(function: Callable[..., Any]) -> str:
    """What the model calls a tool."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def methods_of(kind: type) -> list[Callable[..., Any]]:
    """Methods of an environment that are tools: all public ones, as in TRL."""
    members = inspect.getmembers(kind, predicate=inspect.isfunction)
    return [method for name, method in members if name not in NOT_TOOLS and not name.startswith("_")]


@dataclass
class _Session:
    """A conversation: its environment (None: there is none), its tools, and its own random numbers."""

    name: str | None
    environment: Any
    tools: dict[str, Callable[..., Any]]
    random: Any


_SESSIONS: dict[Any, _Session] = {}

#: What `Contents` are sent as; in the process that has them, themselves.
Payload = bytes | Contents


def _load(payload: Payload) -> Contents:
    return payload if isinstance(payload, Contents) else _unpickled(payload)


@lru_cache(maxsize=2)
def _unpickled(payload: bytes) -> Contents:
    contents: Contents = cloudpickle.loads(payload)  # of this run
    return contents


def start(
    payload: Payload, key: Any, name: str | None, columns: Mapping[str, Any], seed: int, limit: float
) -> str | None:
    """Begin a conversation: reset its environment with the row. Returns what the model is told first.

    Python's and NumPy's global random numbers are of the conversation from here on, by `seed`; a `reset` that has a
    parameter `seed` gets it as well. Raises RewardError.
    """
    contents = _load(payload)
    numbers = random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state()
    session = _Session(name, None, {named(tool): tool for tool in contents.tools}, numbers)
    _SESSIONS[key] = session
    if not contents.factories:
        return None
    free = contents.free[name]
    try:
        with _random_numbers_of(session), alarm(limit):
            session.environment = free.pop() if free else contents.factories[name]()
            told = session.environment.reset(**_taken(session.environment.reset, columns, seed))
            observation = _text(told)
    except (Exception, SystemExit, Late) as e:
        raise RewardError(
            f"environment {type(session.environment).__name__}: reset raised {type(e).__name__}: {e}\n"
            f"  row: {str(dict(columns))[:300]}"
        ) from e
    methods = methods_of(type(session.environment))
    session.tools |= {method.__name__: getattr(session.environment, method.__name__) for method in methods}
    return observation


def _taken(reset: Callable[..., Any], columns: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What of the row `reset` takes; TRL gives all of it."""
    parameters = inspect.signature(reset).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {name: copy.deepcopy(v) for name, v in columns.items() if everything or name in parameters}
    return {"seed": seed, **given} if "seed" in parameters else given


def call(key: Any, calls: Sequence[Mapping[str, Any]], limit: float) -> list[ToolResult]:
    """Call tools one after another; asynchronous ones together, behind the others (as TRL). What they raise is told to
    the model.
    """
    session, waiting = _SESSIONS[key], []
    results: list[ToolResult] = []
    with _random_numbers_of(session):
        for each in calls:
            name, tool = each["name"], session.tools.get(each["name"])
            if tool is None:
                known = ", ".join(session.tools)
                results.append(ToolResult(name, f"There is no tool {name!r}; there are: {known}.", failed=True))
            elif inspect.iscoroutinefunction(tool):
                waiting.append((name, partial(tool, **copy.deepcopy(dict(each["arguments"])))))
            else:
                results.append(_result(name, partial(tool, **copy.deepcopy(dict(each["arguments"]))), limit))
        if waiting:
            results += _together(waiting, limit)
    return results


def _result(name: str, run: Callable[[], Any], limit: float) -> ToolResult:
    try:
        with alarm(limit):
            return ToolResult(name, _text(run()) or "None")
    except (Exception, SystemExit, Late) as e:
        return _failed(name, e)


def _together(waiting: Sequence[tuple[str, Callable[[], Any]]], limit: float) -> list[ToolResult]:
    async def gather() -> list[Any]:
        running = [asyncio.wait_for(_awaited(run), limit or None) for _, run in waiting]
        return await asyncio.gather(*running, return_exceptions=True)

    names = [name for name, _ in waiting]
    out = []
    for name, returned in zip(names, asyncio.run(gather()), strict=True):
        failed = isinstance(returned, BaseException)
        out.append(_failed(name, returned) if failed else ToolResult(name, _text(returned) or "None"))
    return out


async def _awaited(run: Callable[[], Any]) -> Any:
    return await run()


def _failed(name: str, error: BaseException) -> ToolResult:
    """As TRL tells it, with the error's kind where it has no words."""
    told = str(error) or ("took too long" if isinstance(error, TimeoutError) else type(error).__name__)
    return ToolResult(name, str({"error": told})[:_LONGEST], failed=True)


def _text(returned: Any) -> str | None:
    """As a message's content: text parts joined, anything else as Python shows it (TRL). Raises TypeError."""
    if returned is None:
        return None
    if isinstance(returned, list) and returned and all(isinstance(part, dict) and "type" in part for part in returned):
        if other := [part["type"] for part in returned if part["type"] != "text"]:
            raise TypeError(f"only text can be given to the model, not a part of type {other[0]!r}")
        return "".join(str(part.get("text", "")) for part in returned)[:_LONGEST]
    return str(returned).encode("utf-8", "replace").decode()[:_LONGEST]


def end(payload: Payload, key: Any, limit: float, *, keep: bool) -> Outcome:
    """The conversation is over: what its environment gives for it, and, to `keep` it, the environment pickled. Raises
    RewardError.
    """
    session = _SESSIONS.pop(key)
    environment = session.environment
    if environment is None:
        return Outcome()
    reward = None
    if hasattr(type(environment), "get_reward"):
        with _random_numbers_of(session):
            reward = _reward(environment, limit)
    snapshot = _pickled(environment) if keep else None
    _load(payload).free[session.name].append(environment)
    return Outcome(type(environment).__name__, reward, snapshot)


def _reward(environment: Any, limit: float) -> float | None:
    kind = type(environment).__name__
    try:
        with alarm(limit):
            given = environment.get_reward()
            given = asyncio.run(_awaited(lambda: given)) if inspect.isawaitable(given) else given
            reward = None if given is None else float(given)
    except (Exception, SystemExit, Late) as e:
        raise RewardError(f"environment {kind}: get_reward raised {type(e).__name__}: {e}") from e
    if reward is not None and not np.isfinite(reward):
        raise RewardError(f"environment {kind}: get_reward returned {reward}: a reward is a finite number, or None.")
    return reward


class Remains:
    """Stands for an environment that cannot be pickled: its attributes that can be."""

    def __init__(self, kind: str, known: Mapping[str, Any], lost: Sequence[str]) -> None:
        self.__dict__.update(known)
        self.__dict__["_kind"], self.__dict__["_lost"] = kind, tuple(lost)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"{self.__dict__.get('_kind')}.{name}: the environment was stepped in another process, and of one that "
            "cannot be pickled, reward functions see the attributes that can be, and no methods: give it a method "
            "get_reward, which is called there."
        )


def _pickled(environment: Any) -> bytes:
    try:
        return bytes(cloudpickle.dumps(environment))
    except Exception:
        known, lost = {}, []
        for name, value in vars(environment).items():
            try:
                cloudpickle.dumps(value)
                known[name] = value
            except Exception:
                lost.append(name)
        return bytes(cloudpickle.dumps(Remains(type(environment).__name__, known, lost)))


@contextmanager
def _random_numbers_of(session: _Session) -> Iterator[None]:
    """So that what a conversation draws does not depend on which others are stepped in between."""
    others = random.getstate(), np.random.get_state()  # noqa: NPY002  # what environments use
    _set_random(*session.random)
    try:
        yield
    finally:
        session.random = random.getstate(), np.random.get_state()  # noqa: NPY002
        _set_random(*others)


def _set_random(python: Any, numpy: Any) -> None:
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
