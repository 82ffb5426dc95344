"""Two programs, each run in a sandbox of its own: `examine` has the tests, `serve` has the code that is tested. A test
calls the code's functions as if they were its own; only plain values cross. So the code sees arguments, never a test or
an expected value; and nothing that it overwrites, prints, raises or ends is the tests'.

This file is what both are made of (`verdict`): it loads nothing but the standard library. Messages are lines of JSON.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any, BinaryIO

#: Bytes of one message.
LONGEST = 2**24
#: Special methods that a test may use on an object that stays with the code. None of those that compare is there: an
#: object that says it equals everything would pass every test.
_SPECIAL: dict[str, Callable[[Any], Any]] = {"len": len, "str": str, "repr": repr, "iter": iter, "next": next}
#: What tests call the module that the code is, where they import it.
MODULES = ("solution", "main", "candidate", "your_module")


# --- values -----------------------------------------------------------------------------------------------------------


def encode(value: Any, objects: list[Any] | None = None) -> Any:
    """As JSON: a scalar as it is, all else as a list that begins with its kind. What is no plain value is kept in
    `objects`, and its number crosses. Raises TestError where there are none.
    """
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return ["int", hex(value)]  # of any size, in linear time
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, dict):
        return ["dict", [[encode(k, objects), encode(v, objects)] for k, v in value.items()]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encode(item, objects) for item in value]]
    if isinstance(value, Remote):
        return ["object", value._number]
    if objects is None:
        raise TestError(f"a test gives the code a {type(value).__name__}: only plain values can be given")
    objects.append(value)
    return ["object", len(objects) - 1]


def decode(told: Any, of_object: Any) -> Any:
    """What `encode` made it of; `of_object` makes an object of a number. Raises ValueError, TypeError."""
    if told is None or isinstance(told, bool | float | str):
        return told
    kind, *rest = told
    if kind == "int":
        return int(rest[0], 16)
    if kind == "bytes":
        return bytes.fromhex(rest[0])
    if kind == "complex":
        return complex(*rest)
    if kind == "dict":
        return {decode(k, of_object): decode(v, of_object) for k, v in rest[0]}
    if kind == "object":
        return of_object(rest[0])
    if kind not in ("list", "tuple", "set", "frozenset"):
        raise ValueError(f"no kind of value: {kind!r}")
    return getattr(builtins, kind)(decode(item, of_object) for item in rest[0])


def take_over(number: int) -> BinaryIO:
    """The file of that number, which from now on is /dev/null for all others."""
    kept = os.dup(number)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, number)
    os.close(null)
    return os.fdopen(kept, "rb" if number == 0 else "wb", 2**16 if number == 0 else 0)


# --- the code ---------------------------------------------------------------------------------------------------------


def serve(source: str) -> None:
    """Run the code, then do what is asked of it until nobody asks any more."""
    requests, replies = take_over(0), take_over(1)
    module = types.ModuleType("solution")
    objects: list[Any] = [module]  # `Remote(0)` of the tests
    names, failed = module.__dict__, None
    try:
        exec(compile(source, "solution.py", "exec"), names)  # noqa: S102 (in the sandbox)
    except BaseException as e:
        failed = _shown(e)
    while line := requests.readline():
        request = json.loads(line)
        try:
            if request["do"] == "names":
                found = {name: encode(names[name], objects) for name in request["names"] if name in names}
                reply: dict[str, Any] = {"names": found, "failed": failed}
            else:
                reply = {"value": encode(_done(request, objects), objects)}
        except BaseException as e:
            reply = {"raised": type(e).__name__, "said": _shown(e)}
        _write(replies, json.dumps(reply).encode() + b"\n")


def _done(request: dict[str, Any], objects: list[Any]) -> Any:
    target = objects[request["object"]]
    arguments = [decode(value, objects.__getitem__) for value in request["args"]]
    if request["do"] == "call":
        return target(*arguments, **{k: decode(v, objects.__getitem__) for k, v in request["named"].items()})
    if request["do"] == "attribute":
        return getattr(target, *arguments)
    if request["do"] == "set":
        return setattr(target, *arguments)
    if request["do"] == "item":
        return target[arguments[0]]
    return _SPECIAL[request["do"]](target)


def _write(file: BinaryIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def _shown(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:
        return type(error).__name__


def answer(source: str, name: str, arguments: list[list[Any]]) -> None:
    """Call one function of the code with each of these, and print what it returns; of what raises, nothing."""
    told = take_over(1)
    names: dict[str, Any] = {"__name__": "solution"}
    exec(compile(source, "solution.py", "exec"), names)  # noqa: S102 (in the sandbox)
    for number, given in enumerate(arguments):
        try:
            line = json.dumps([number, encode(names[name](*given))])
        except Exception:
            continue
        _write(told, line.encode() + b"\n")


# --- the tests --------------------------------------------------------------------------------------------------------


class TestError(Exception):
    """What a test cannot do."""


class CodeError(Exception):
    """What the code raised, where it is no exception of Python's own; or it ended, or said something else."""


class Remote:
    """An object that stays with the code: what a test may do with it is done there."""

    asked = 0
    requests: BinaryIO
    replies: BinaryIO

    def __init__(self, number: int) -> None:
        self._number = int(number)

    @classmethod
    def ask(cls, **request: Any) -> dict[str, Any]:
        """Send a request, and wait for the reply. Raises CodeError where none comes."""
        Remote.asked += 1
        try:
            _write(cls.requests, json.dumps(request).encode() + b"\n")
            line = cls.replies.readline(LONGEST)
            reply = json.loads(line) if line else None
        except (OSError, ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise CodeError("the code ended, or said what is no reply")
        return reply

    def _do(self, what: str, *args: Any, **named: Any) -> Any:
        given = {"args": [encode(a) for a in args], "named": {k: encode(v) for k, v in named.items()}}
        reply = Remote.ask(do=what, object=self._number, **given)
        if "value" not in reply:
            kind = getattr(builtins, str(reply.get("raised")), None)
            if not (isinstance(kind, type) and issubclass(kind, Exception)) or kind is AssertionError:
                kind = CodeError
            raise kind(str(reply.get("said")))
        try:
            return decode(reply["value"], Remote)
        except (ValueError, TypeError, LookupError, RecursionError):
            raise CodeError("the code said what is no value") from None

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._do("call", *args, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._do("attribute", name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_number":
            object.__setattr__(self, name, value)
        else:
            self._do("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._do("item", key)

    def __contains__(self, value: Any) -> bool:
        raise CodeError("a test looks into an object of the code's own, which may say that it contains everything")

    def __len__(self) -> int:
        return int(self._do("len"))

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Any:
        return self._do("iter")

    def __next__(self) -> Any:
        return self._do("next")

    def __str__(self) -> str:
        return str(self._do("str"))

    def __repr__(self) -> str:
        return str(self._do("repr"))


def plain(value: Any) -> Any:
    """With lists in place of tuples, as JSON has them."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def run_test(case: Any) -> None:
    """Run one test of a unittest.TestCase, with what its class sets up and takes down. Raises what it raised first;
    TestError where it is skipped or expected to fail.
    """
    import unittest

    raised: list[BaseException] = []

    class Result(unittest.TestResult):  # which keeps what was raised, not as a text
        def addError(self, test: Any, err: Any) -> None:
            raised.append(err[1])

        addFailure = addError

        def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
            raised.extend([err[1]] if err else [])

        def addSkip(self, test: Any, reason: str) -> None:
            raised.append(TestError(f"a test is skipped: {reason}"))

        def addExpectedFailure(self, test: Any, err: Any = None) -> None:
            raised.append(TestError("a test is expected to fail, which is not supported"))

        addUnexpectedSuccess = addExpectedFailure

    unittest.TestSuite([case]).run(Result())
    if raised:
        raise raised[0]


def examine(setup: list[str], tests: list[str]) -> None:
    """Run the tests one after another, and say of each, as a line on stderr, whether it passed; or that it cannot be
    run, for a reason that is not the code's.
    """
    Remote.replies, Remote.requests, verdicts = take_over(0), take_over(1), take_over(2)

    def tell(**what: Any) -> None:
        _write(verdicts, json.dumps(what).encode() + b"\n")

    sources = (*setup, *tests)
    used = [{n.id for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Name)} for s in sources]
    wanted = set[str]().union(*used) - set(dir(builtins))
    try:
        reply = Remote.ask(do="names", names=sorted(wanted))
        names = {name: decode(told, Remote) for name, told in dict(reply.get("names", {})).items() if name in wanted}
    except (CodeError, ValueError, TypeError, LookupError, RecursionError):
        reply, names = {"failed": "the code ended while it was loaded"}, {}
    if reply.get("failed"):
        tell(failed=str(reply["failed"]))
        return
    of_code = set(names)
    names |= {"__name__": "tests", "plain_": plain, "run_test_": run_test}
    sys.modules.update(dict.fromkeys(MODULES, Remote(0)))  # type: ignore[arg-type]  # all that import takes is attributes
    blamed = False  # what comes after a failure of the code's may fail for it
    for number, source in enumerate(sources, start=-len(setup)):
        Remote.asked = 0
        try:
            exec(compile(source, "tests.py", "exec"), names)  # noqa: S102 (in the sandbox)
        except BaseException as e:
            missing = isinstance(e, NameError) and e.name in wanted
            uses_code = Remote.asked or missing or used[number + len(setup)] & of_code or isinstance(e, AssertionError)
            blamed = blamed or (bool(uses_code) and not isinstance(e, TestError))
            if not blamed:
                tell(broken=_shown(e))
                return
            tell(test=number, passed=False, said=_shown(e))
        else:
            if number >= 0:
                tell(test=number, passed=True)
