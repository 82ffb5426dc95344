"""What is wrong with the scorers of reasoning-gym 0.1.25, and what is done about it before, or in place of, a call.

Every answer is checked by `refusal` first. Of the rest, a scorer of reasoning-gym is only called with text that its
dataset's `pattern` allows, or not at all, where one of `OWN` stands in for it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..arithmetic import evaluate

Entry = Mapping[str, Any]

#: Credit between none and full is kept where it says how near to the truth an answer is. Of all others only full marks
#: count: their parts are for a format (0.01, 0.05, 0.1), or for texts that contain the answer.
DENSE = frozenset(
    """
    boxnet calendar_arithmetic complex_arithmetic emoji_mystery futoshiki game_of_life knight_swap letter_jumble
    mini_sudoku polynomial_equations quantum_lock rectangle_count rubiks_cube sentence_reordering shortest_path
    spell_backward sudoku tower_of_hanoi word_sorting
    """.split()
)

#: Names that an answer to an integral may have; sympy would call any name of Python.
_FUNCTIONS = "sin cos tan sinh cosh tanh asin acos atan asinh acosh atanh exp log sqrt Abs pi E".split()
_SYMPY = "runs code: sympy.parse_expr evaluates it"
_EVAL = "runs code: eval(answer)"


@dataclass(frozen=True)
class Risk:
    """Why the scorer of a dataset must not be called with just anything; `pattern`: what all of an answer must match to
    be scored at all.
    """

    why: str
    pattern: re.Pattern[str] | None = None


def _words(*names: str) -> re.Pattern[str]:
    """Arithmetic over these names, for sympy: no attributes, texts, brackets, keywords or factorials."""
    return re.compile(rf"(?:(?:{'|'.join(names)})(?![\w.])|\d+(?:\.\d+)?(?![\w.])|[-+*/()\s])++")


RISKS: dict[str, Risk] = {
    "binary_matrix": Risk(_EVAL, re.compile(r"[\d\s]+")),
    "spiral_matrix": Risk(_EVAL, re.compile(r"-?\d+(?:\s+-?\d+)*")),
    "string_insertion": Risk(_EVAL, re.compile(r"[A-E]+")),
    "n_queens": Risk(_EVAL, re.compile(r"[Q_\s]+")),
    "simple_integration": Risk(
        f"{_SYMPY}; Integral(...) of the question is its own answer", _words("[xXyYzZ]", "C", *_FUNCTIONS)
    ),
    "intermediate_integration": Risk(
        f"{_SYMPY}; Integral(...) of the question is its own answer", _words("[xXyYzZ]", "C", *_FUNCTIONS)
    ),
    "polynomial_multiplication": Risk(f"{_SYMPY}; expand(...) of the question is its own answer", _words("[a-zA-Z]")),
    "countdown": Risk(f"{_SYMPY}; 72e0 hides a number"),
    "puzzle24": Risk(f"{_SYMPY}; any four numbers will do, and 24.9 counts as 24"),
    "game_of_life_halting": Risk("any text that is not empty scores full marks"),
    "number_sorting": Risk("NaN for every number scores full marks; each may be off by 1"),
    "rush_hour": Risk("F+99999999999 never ends", re.compile(r"(?:[A-Z][+-]\d{1,2}[\s,;]*)++")),
    "rubiks_cube": Risk("R99999999999 fills the memory", re.compile(r"\d?[A-Z]w?['2]?(?:\s+\d?[A-Z]w?['2]?)*+")),
    "complex_arithmetic": Risk("nan scores full marks", re.compile(r"[-+\d.ijIJ()\s]+")),
    "coin_flip": Risk(
        "0 is right for all that is rare; 1e999999999 never ends", re.compile(r"\d+(?:\.\d+)?(?:[eE]-?\d\d?)?(?:/\d+)?")
    ),
}

RISKS |= {
    "fraction_simplification": Risk(
        "the first fraction of any text counts; a failure earns 0.01",
        re.compile(r"\$?\s*(?:\d+\s*/\s*\d+|\\d?frac\s*\{\d+\}\s*\{\d+\})\s*\$?"),
    ),
    "polynomial_equations": Risk(
        "what is no number is passed over; an equation without solutions is solved by any text",
        re.compile(r"-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?)*+"),
    ),
    "quantum_lock": Risk("every A, B and C of any text is a step", re.compile(r"[A-C](?:[\s,→>-]+[A-C])*+")),
    "propositional_logic": Risk("a premise counts as a conclusion", re.compile(r"[A-Z()\s∧∨¬→↔]+")),
    "sokoban": Risk("letters that are no steps are passed over", re.compile(r"[UDLRudlr\s]+")),
    "gsm_symbolic": Risk("the first number of any text counts", re.compile(r"-?\$?[\d,]+(?:\.\d+)?%?")),
}

#: Names of numbers that are none; with them comparisons fail the wrong way.
_NO_NUMBER = re.compile(r"(?<![a-z])(?:nan|inf|infinity)[ij]?(?![a-z])", re.I)
_HIDDEN_DIGITS = re.compile(r"\d_\d|\d[eE][-+]?\d{3}")
_MOST_DIGITS = 60


def refusal(answer: str, gold: str, name: str) -> str | None:
    """Why an answer is scored 0 before any scorer sees it; None: it may pass."""
    if not answer.strip():
        return "it is empty"
    if len(answer) > 4 * len(gold) + 400:
        return "it is much longer than the right one"
    if any((c.isnumeric() and not c.isascii() and c not in gold) or c in "\x00\x7f" or "\ud800" <= c <= "\udfff"
           for c in answer):  # fmt: skip
        return "it has digits or characters that are none of text"
    if _NO_NUMBER.search(answer) and not _NO_NUMBER.search(gold):
        return "it is no number"
    digits = max((len(run) for run in re.findall(r"\d+", gold)), default=0)
    if _HIDDEN_DIGITS.search(answer) or re.search(rf"\d{{{max(_MOST_DIGITS, digits) + 1}}}", answer):
        return "it has a number that Python reads otherwise, or one that is far too long"
    if name in RISKS and (pattern := RISKS[name].pattern) and not pattern.fullmatch(answer):
        return "it is not of the form that this dataset's answers have"
    if name == "spell_backward" and len(answer) != len(gold):
        return "it has not as many letters, and each in its place would earn a part"
    if name in _SYMPY_DATASETS and not _is_quick(answer):
        return "it would take long to compute"
    return None


def is_copy(answer: str, entry: Entry, name: str) -> bool:
    """Whether a conclusion is one of the premises, which the library takes for a conclusion."""
    if name != "propositional_logic":
        return False
    bare = [re.sub(r"[\s()]", "", text) for text in (answer, *entry["metadata"]["premises"])]
    return bare[0] in bare[1:] and answer != entry["answer"]


_SYMPY_DATASETS = frozenset(name for name, risk in RISKS.items() if risk.why.startswith(_SYMPY))


def _is_quick(expression: str) -> bool:
    """Small powers, none of a power, and not too many brackets within brackets."""
    powers = re.findall(r"\*\*\s*(\(?-?[\d/. ]*)", expression)
    numbers = [int(n) for power in powers for n in re.findall(r"\d+", power)]
    depth, deepest = 0, 0
    for character in expression:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    small = all(n <= 60 for n in numbers) and math.prod(max(n, 1) for n in numbers if n > 12) <= 60**3
    return small and deepest <= 20 and not re.search(r"\*\*[^-+*/]*\*\*", expression)


# --- scorers of ours ------------------------------------------------------------------------------------------------


def _same_text(answer: str, entry: Entry) -> float:
    return float(answer.casefold() == str(entry["answer"]).casefold())


def _reaches(answer: str, numbers: list[int], target: int) -> float:
    try:
        value, used = evaluate(answer, signs=True)
    except (ValueError, ZeroDivisionError):
        return 0.0
    return float(value == target and used == Counter(numbers))


def _countdown(answer: str, entry: Entry) -> float:
    return _reaches(answer, entry["metadata"]["numbers"], entry["metadata"]["target"])


def _puzzle24(answer: str, entry: Entry) -> float:
    return _reaches(answer, entry["metadata"]["numbers"], 24)


def _number_sorting(answer: str, entry: Entry) -> float:
    """The numbers of the gold answer, in its order, as a list of texts or numbers."""
    try:
        given, gold = (json.loads(text.replace("'", '"')) for text in (answer, entry["answer"]))
        return float(isinstance(given, list) and [float(n) for n in given] == [float(n) for n in gold])
    except (ValueError, TypeError, RecursionError):
        return 0.0


def _coin_flip(answer: str, entry: Entry) -> float:
    """Within a thousandth of the right probability. Both have small exponents."""
    try:
        given, gold = (Fraction(text) for text in (answer, str(entry["answer"])))
    except (ValueError, ZeroDivisionError):
        return 0.0
    return float(abs(given - gold) * 1000 <= gold)


OWN: dict[str, Callable[[str, Entry], float]] = {
    "game_of_life_halting": _same_text,
    "coin_flip": _coin_flip,
    "countdown": _countdown,
    "puzzle24": _puzzle24,
    "number_sorting": _number_sorting,
}
