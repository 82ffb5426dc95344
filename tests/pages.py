"""The README and the pages of docs/, and the code blocks in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n+)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """`kind` is what stands behind the fence; `note` the comment before it: `not run: why`, which no page shows."""

    page: str
    line: int
    kind: str
    text: str
    note: str

    @property
    def is_run(self) -> bool:
        return not self.note.startswith("not run: ")

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            page.relative_to(ROOT).as_posix(), text[: m.start()].count("\n") + 1, m["kind"], m["text"], m["note"] or ""
        )
        for m in _BLOCK.finditer(text)
    ]


ALL = [block for page in PAGES for block in blocks(page)]
