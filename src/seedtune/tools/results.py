"""What comes back from a process that runs tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolResult:
    """What a tool returned, as text, or what went wrong (`failed`)."""

    name: str
    content: str
    failed: bool = False

    @property
    def message(self) -> dict[str, Any]:
        """As conversations have it."""
        return {"role": "tool", "name": self.name, "content": self.content}


@dataclass(frozen=True)
class Outcome:
    """What is left of an episode: the class of its environment (empty: there was none), the `reward` that it gave
    (None: it gives none) and, where reward functions ask for it, the environment, pickled.
    """

    kind: str = ""
    reward: float | None = None
    environment: bytes | None = None
