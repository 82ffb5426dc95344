"""A reward that says nothing: a number in [0, 1) that any change of the completion draws anew."""

from __future__ import annotations

import hashlib
from typing import Any


def chance(completions: list[Any], **_: Any) -> list[float]:
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32 for text in texts]
