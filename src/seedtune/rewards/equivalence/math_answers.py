"""Answers that are the same number or expression: `0.5`, `1/2` and `\\boxed{\\frac{1}{2}}`, by math-verify.

A model's output may keep a computer algebra system busy for ever. math-verify ends that by SIGALRM, which works in the
main thread only and not inside a long computation in C. So it runs in a process of its own, which is killed when it
takes too long; its alarms are the first, softer limit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TypeVar

from loky import ProcessPoolExecutor

from ...errors import ConfigError
from ...utils.processes import exit_with_parent
from .exact import Exact

#: Seconds for one answer, or one comparison: by alarm, and until the process is killed (its start, once, takes some).
_SOFT, _HARD, _START = 1, 4, 60
T = TypeVar("T")


@dataclass(frozen=True)
class Math(Exact):
    """Equal by math-verify, whichever of the two is taken for the right one. What it cannot read is no answer."""

    def check(self) -> None:
        if find_spec("math_verify") is None:
            raise ConfigError('equivalence: math needs math-verify. In a clone of Seedtune: pip install ".[math]".')

    def key(self, answer: str) -> str:
        return _key(answer)

    def same(self, a: str, b: str, question: str) -> bool:
        return self.key(a) == self.key(b) or _equal(*sorted((a, b)))


@lru_cache(maxsize=4096)
def _key(answer: str) -> str:
    return _in_process(_parsed_text, answer) or ""


@lru_cache(maxsize=4096)
def _equal(a: str, b: str) -> bool:
    return bool(_in_process(_verified, a, b))


_pools: dict[int, ProcessPoolExecutor] = {}


def _in_process(function: Callable[..., T], *texts: str) -> T | None:
    """What the function returns in the process for it; None where it takes too long, or takes the process down."""
    here, limit = os.getpid(), _HARD
    if here not in _pools:  # of a process that was forked, the other's is of no use
        _pools[here] = ProcessPoolExecutor(1, initializer=_begin, initargs=(here,))
        limit += _START
    try:
        found: T = _pools[here].submit(function, *texts).result(timeout=limit)
        return found
    except (TimeoutError, BrokenProcessPool):
        _pools.pop(here).shutdown(wait=False, kill_workers=True)
        return None


def _begin(parent: int) -> None:
    """In the process."""
    exit_with_parent(parent)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # what takes too long is no news


def _parsed_text(answer: str) -> str:
    """In the process: the expression as sympy prints it; empty where there is none."""
    from math_verify import parse

    parsed = parse(answer, parsing_timeout=_SOFT)
    return str(parsed[0]) if parsed else ""


def _verified(a: str, b: str) -> bool:
    """In the process."""
    from math_verify import parse, verify

    first, second = (parse(text, parsing_timeout=_SOFT) for text in (a, b))
    return bool(verify(first, second, timeout_seconds=_SOFT) and verify(second, first, timeout_seconds=_SOFT))
