"""Whether two answers are the same number or expression: `0.5`, `1/2` and `\\frac{1}{2}`, by math-verify.

What a model writes may keep a computer algebra system busy for ever (`9**9**9**9`). So an answer is read only if it is
short and its powers and factorials are small, and then in a process with a limit.
"""

from __future__ import annotations

import logging
import math
import re
from functools import lru_cache
from importlib.util import find_spec

from ..errors import ConfigError
from ..utils.limited import LimitedProcess

_process = LimitedProcess()

#: Longer texts are no answers; nor are longer numbers.
LONGEST, MOST_DIGITS = 400, 60
#: The product of all whole numbers that stand in exponents, at most; and what a factorial or binomial is taken of.
_EXPONENTS, _FACTORIALS = 5_000, 200
#: A parser takes long where brackets stand within brackets.
_DEEPEST = 8
#: What computes instead of saying a value.
_COMPUTES = re.compile(r"\\(?:sum|prod|int|iint|oint|lim|frac\{d|underbrace|overbrace|bmod)(?![a-z])|_\s*_|[\x00-\x08]")
_POWER = re.compile(r"\*\*|\^")
_EXPONENT = re.compile(r"\s*([-+]?\s*(?:\{[^{}]*\}|\([^()]*\)|[\w.\\!]+))\s*")


def check_installed(what: str) -> None:
    """Raise ConfigError where math-verify is missing; `what` needs it."""
    if find_spec("math_verify") is None:
        raise ConfigError(f'{what} needs math-verify: pip install math-verify (in a clone: pip install ".[math]").')


@lru_cache(maxsize=4096)
def canonical(answer: str) -> str:
    """The expression as sympy prints it; empty where there is none, or none that is safe to compute."""
    return _process.call(_parsed_text, answer, imports=_import) or "" if is_small(answer) else ""


def equal(a: str, b: str) -> bool:
    """Whether the two say the same, whichever is taken for the right one. What cannot be read equals nothing."""
    return _equal(*sorted((a, b)))


@lru_cache(maxsize=4096)
def _equal(a: str, b: str) -> bool:
    return is_small(a) and is_small(b) and bool(_process.call(_verified, a, b, imports=_import))


def is_small(text: str) -> bool:
    """Whether computing what the text says is surely quick: it is short, so are its numbers, no exponent stands on an
    exponent, and exponents and factorials are small.
    """
    if len(text) > LONGEST or _COMPUTES.search(text) or any(c.isdigit() and not c.isascii() for c in text):
        return False
    numbers = re.findall(r"\d+", text)
    if any(len(number) > MOST_DIGITS for number in numbers) or re.search(r"\d[eE][-+]?\d{3}", text):
        return False
    large = any(len(n) > 6 or int(n) > _FACTORIALS for n in numbers) or re.search(r"[!)}\]]\s*!", text)
    if (large and re.search(r"!|binom|choose|gamma", text)) or _depth(text) > _DEEPEST:
        return False
    return _exponents_are_small(text)


def _depth(text: str) -> int:
    """Of brackets within brackets."""
    open_now = deepest = 0
    for character in text:
        open_now += (character in "([{") - (character in ")]}")
        deepest = max(deepest, open_now)
    return deepest


def _exponents_are_small(text: str) -> bool:
    product, end = 1, -1
    for power in _POWER.finditer(text):
        exponent = _EXPONENT.match(text, power.end())
        if power.start() == end or exponent is None or _POWER.search(exponent[1]) or "!" in exponent[1]:
            return False  # a tower, or an exponent that is none, or has brackets within brackets
        product *= math.prod(max(1, int(number)) for number in re.findall(r"\d+", exponent[1])[:9])
        end = exponent.end()
        if product > _EXPONENTS:
            return False
    return True


def _import() -> None:
    """In the process."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # what takes too long is no news
    math_verify.parse("1", parsing_timeout=None)  # the alarm is ours


def _parsed_text(answer: str) -> str:
    """In the process."""
    from math_verify import parse

    parsed = parse(answer, parsing_timeout=None)
    return str(parsed[0]) if parsed else ""


def _verified(a: str, b: str) -> bool:
    """In the process."""
    from math_verify import parse, verify

    first, second = (parse(text, parsing_timeout=None) for text in (a, b))
    return bool(verify(first, second, timeout_seconds=None) and verify(second, first, timeout_seconds=None))
