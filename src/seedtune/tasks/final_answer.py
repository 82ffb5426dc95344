"""Where a completion says its answer: in `<answer>` tags, in `\\boxed{}`, or behind `####`. All in linear time, as a
model may write a megabyte of opening tags.
"""

from __future__ import annotations

import re

_OPEN, _CLOSE = "<answer>", "</answer>"
_BOX = re.compile(r"\\f?boxed\s*\{")
#: How much of a box is looked at: an answer is short.
_LONGEST_BOX = 2000


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
    """What stands in the last `\\boxed{}` that is closed; None where there is none."""
    starts = [match.end() for match in _BOX.finditer(text)][-1:]
    for start in starts:
        depth = 1
        for n, character in enumerate(text[start : start + _LONGEST_BOX]):
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return text[start : start + n].strip()
    return None


def last_hashed(text: str) -> str | None:
    """What stands behind the last `####`, to the end of the line (as GSM8K marks its answers); None: there is none."""
    place = text.rfind("####")
    return None if place < 0 else text[place + 4 :].partition("\n")[0].strip()
