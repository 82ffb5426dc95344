"""How many tests a program passes. The tests are not where the program is: see `dialogue`."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ... import sandbox
from ...sandbox import Limits
from .dialogue import Remote, decode


class BadTests(ValueError):
    """Tests that cannot be run, whatever the code."""


@dataclass(frozen=True)
class Asserts:
    """Python that calls the program's functions: each of `tests` passes when it raises nothing; `setup` comes first."""

    tests: tuple[str, ...]
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pairs:
    """Texts to give to a program as stdin, and what it must print."""

    pairs: tuple[tuple[str, str], ...]


Tests = Asserts | Pairs


@dataclass(frozen=True)
class Verdict:
    """How many of the tests the code passes, and how the first failure was; `broken`: why the tests say nothing."""

    passed: int
    total: int
    failure: str = ""
    broken: str = ""

    @property
    def share(self) -> float:
        return self.passed / self.total

    @property
    def all(self) -> bool:
        return self.passed == self.total


def code_of(text: str) -> str:
    """The code of a completion: its last fenced block, which may lack its end; without one, all of it."""
    blocks = re.findall(r"^[ \t]*```[^\n`]*$\n?(.*?)(?:^[ \t]*```|\Z)", text, re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else text


def check(code: str, tests: Tests, limits: Limits | None = None) -> Verdict:
    """Run the tests on the code, in sandboxes. Each is limited by `limits`: of pairs each one, of asserts all together.

    What is promised: a test passes only by what the code's functions return, or what it prints, when called with the
    test's arguments, or given its input. Raises SandboxError.
    """
    limits = limits or Limits()
    return _asserts(code, tests, limits) if isinstance(tests, Asserts) else _pairs(code, tests, limits)


def returned(code: str, function: str, arguments: Sequence[Sequence[Any]], limits: Limits | None = None) -> list[Any]:
    """What a function of the code returns for each of these lists of arguments; None where it raises, or returns what
    is no plain value. Raises SandboxError.
    """
    program = f"{_dialogue()}\nanswer({code!r}, {function!r}, {[list(a) for a in arguments]!r})\n"
    found: list[Any] = [None] * len(arguments)
    for line in sandbox.run(program, "", limits).stdout.splitlines():
        try:
            number, told = json.loads(line)
            found[number] = decode(told, Remote)
        except (ValueError, TypeError, LookupError, RecursionError):  # the code may print what it likes
            continue
    return found


def parsed(source: str) -> ast.Module | None:
    """Python as a tree; None for what is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for code such as `1is 1`
            return ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


@cache
def _dialogue() -> str:
    return Path(__file__).with_name("dialogue.py").read_text(encoding="utf-8")


def _asserts(code: str, tests: Asserts, limits: Limits) -> Verdict:
    total = len(tests.tests)
    examiner = f"{_dialogue()}\nexamine({list(tests.setup)!r}, {list(tests.tests)!r})\n"
    candidate = f"{_dialogue()}\nserve({code!r})\n"
    longer = replace(Limits(), seconds=limits.seconds + 5)  # the code is ended before its tests are
    said, served = sandbox.converse(examiner, candidate, longer, limits)
    lines = [json.loads(line) for line in said.stderr.splitlines() if line.endswith("}")]
    passed = sum(line.get("passed", False) for line in lines)
    ended = f"the code ran out of {served.ended}" if served.ended in ("time", "memory", "output") else ""
    for line in lines:
        if "broken" in line:
            return Verdict(0, total, broken=line["broken"])
        if not line.get("passed"):
            return Verdict(passed, total, ended or line.get("failed") or line["said"])
    if passed < total:
        return Verdict(passed, total, ended or f"the tests ended early ({said.ended})")
    return Verdict(passed, total)


def _pairs(code: str, tests: Pairs, limits: Limits) -> Verdict:
    """Programs that do not end are given no more tests."""
    passed, failure = 0, ""
    for stdin, expected in tests.pairs:
        result = sandbox.run(code, stdin, limits)
        right = result.ok and lines_of(result.stdout) == lines_of(expected)
        passed += right
        if not right and not failure:
            said = f"{result.ended}: {result.stderr.strip()[-300:]}"
            failure = f"printed {result.stdout[:200]!r}, not {expected[:200]!r}" if result.ok else said
        if result.ended == "time":
            break
    return Verdict(passed, len(tests.pairs), failure)


def lines_of(text: str) -> list[str]:
    """Its lines, without spaces at their ends, and without empty ones at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]
