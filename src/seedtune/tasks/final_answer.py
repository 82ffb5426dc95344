"""Where a completion says its answer: in `<answer>` tags, in `\\boxed{}`, or behind `####`. All in linear time, as a
model may write a megabyte of opening tags. What only looks like a mark (`### Answer`, `**Answer:**`, "The answer is")
is none.
"""

from __future__ import annotations

import re

_OPEN, _CLOSE = "<answer>", "</answer>"
_HASHES = "####"
#: What may stand around the answer behind it.
_AROUND = " \t*`"
_WORD, _COMMAND = re.compile(r"[^\W\d_]{2,}"), re.compile(r"\\(?:(?:text|mathrm|mbox)\s*\{[^{}]*\}|[a-zA-Z]+)")
_BOX = re.compile(r"\\f?boxed\s*\{")
#: How much of a box is looked at: an answer is short.
_LONGEST_BOX = 2000
#: How many that are not closed may stand behind it.
_MOST_OPEN = 4


def tagged(text: str, tag: str = "answer") -> list[tuple[int, int]]:
    """Where the blocks `<tag>...</tag>` stand, each from its first opening tag to the next closing one: start and end
    of the whole. What `re.findall` with `.*?` finds, but in time that grows with the text, not with its square.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    found, place = [], 0
    while (start := text.find(opening, place)) >= 0 and (end := text.find(closing, start)) >= 0:
        place = end + len(closing)
        found.append((start, place))
    return found


def contents(text: str) -> list[str]:
    """What stands within each `<answer>...</answer>`."""
    return [text[start + len(_OPEN) : end - len(_CLOSE)] for start, end in tagged(text)]


def last_tagged(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`, without spaces around it; None where there is none. Tags within
    tags are no answer.
    """
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, max(end, 0))
    if start < 0:
        return None
    nested = text.rfind(_OPEN, 0, start) > text.rfind(_CLOSE, 0, start)  # one that is still open stands around it
    content = text[start + len(_OPEN) : end]
    return None if nested or _CLOSE in content else content.strip()


def last_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{}` that is closed, wherever it stands (code is text like any other); None where
    there is none.
    """
    found = _last_box(text)
    return None if found is None else found[1]


def _last_box(text: str) -> tuple[int, str] | None:
    """Where the last box begins, and what stands in it."""
    for match in [*_BOX.finditer(text)][: -_MOST_OPEN - 1 : -1]:
        depth = 1
        for n, character in enumerate(text[match.end() : match.end() + _LONGEST_BOX]):
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return match.start(), text[match.end() : match.end() + n].strip()
    return None


def last_hashed(text: str, *, words: bool = False) -> str | None:
    """What stands behind `####` in the last line that is not empty, as GSM8K marks its answers: a number or an
    expression, with `words` any text. None: there is none. So a Markdown heading of level 4 is no answer, nor is what
    is said before other text.
    """
    found = _last_hash(text, words=words)
    return None if found is None else found[1]


def _last_hash(text: str, *, words: bool = False) -> tuple[int, str] | None:
    """Where the mark stands, and what is behind it."""
    end = text.rstrip()
    start = end.rfind("\n") + 1
    place = end.rfind(_HASHES, start)
    if place < 0 or end[max(start, place - 1) : place] == "#":
        return None
    answer = end[place + len(_HASHES) :].strip(_AROUND)
    return (place, answer) if answer and (words or not has_words(answer)) else None


def has_words(answer: str) -> bool:
    """Whether there are words in it, besides LaTeX's commands: then it is no number or expression."""
    return bool(_WORD.search(_COMMAND.sub("", answer)))


def last_marked(text: str) -> str | None:
    """The answer of the last mark of any kind: `<answer>`, `\\boxed{}`, or `####` with a number or an expression at the
    end. Of marks within one another the inner one counts. None: there is no mark.
    """
    blocks = tagged(text)[-1:]
    marks = [(start, text[start + len(_OPEN) : end - len(_CLOSE)].strip()) for start, end in blocks]
    marks += [mark for mark in (_last_box(text), _last_hash(text)) if mark]
    return max(marks)[1] if marks else None
