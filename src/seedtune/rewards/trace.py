"""The traceback of an error as the user should see it: with its causes, and without frames that are not theirs."""

from __future__ import annotations

import traceback
from collections.abc import Collection


def trace(error: BaseException, hidden: Collection[str]) -> str:
    """As Python prints it, without frames of the files `hidden`; of causes and of groups, too."""
    whole = traceback.TracebackException.from_exception(error)
    errors, seen = [whole], set[int]()
    while errors:
        one = errors.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.stack = traceback.StackSummary.from_list([f for f in one.stack or () if f.filename not in hidden])
        errors += [e for e in (one.__cause__, one.__context__, *(one.exceptions or ())) if e is not None]
    return "".join(whole.format()).rstrip("\n")


def text_of_error(error: BaseException) -> str:
    """What it says of itself, where it can."""
    try:
        return str(error)
    except Exception:
        return "(it fails to say what)"
