"""`journal.jsonl`: append-only, on disk before an iteration counts as done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import JournalError, SaveError
from .record import ROOT, Iteration, check_header, contiguous, seal, unseal

NAME = "journal.jsonl"


class Journal:
    """A header and one record an iteration."""

    def __init__(self, path: Path, header: Mapping[str, Any], iterations: list[Iteration], chain: str) -> None:
        self.path, self.header, self.iterations, self._chain = path, header, iterations, chain

    @staticmethod
    def create(folder: Path, header: Mapping[str, Any]) -> Journal:
        text, chain = seal(header, ROOT)
        _append(folder / NAME, text, new=True)
        return Journal(folder / NAME, header, [], chain)

    @staticmethod
    def read(place: Path, mend: bool = True) -> tuple[Journal, str | None]:
        """The journal of a run (its folder, or the file), and a note when its last line was torn; `mend` cuts that off.

        Raises JournalError that names the line for any other damage.
        """
        path = place / NAME if place.is_dir() else place
        data = path.read_bytes()
        lines = data.split(b"\n")
        torn = lines.pop()
        chain, parsed = ROOT, []
        for number, raw in enumerate(lines, 1):
            try:
                line, chain = unseal(raw.decode(), chain)
            except (ValueError, KeyError) as e:
                advice = "The iterations before it are sound; a copy of the file cut before that line can be resumed."
                if number == 1:
                    advice = "It is neither a journal nor a patch, or its header is damaged: nothing of it can be used."
                raise JournalError(f"{path}, line {number} is damaged: {e}. {advice}") from None
            parsed.append(line)
        if not parsed:
            raise JournalError(f"{path} is empty, or holds no whole line: it is no journal of a run that has started.")
        check_header(parsed[0], str(path))
        try:
            iterations = [Iteration.from_json(line) for line in parsed[1:]]
        except (KeyError, TypeError, ValueError) as e:
            raise JournalError(f"{path} holds a line that is no iteration ({e!r}): it is not a journal.") from None
        contiguous(iterations, str(path))
        note = None
        if torn:
            if mend:
                with path.open("r+b") as f:
                    f.truncate(len(data) - len(torn))
            note = f"the last line of {path.name} was torn ({len(torn)} bytes) and was dropped"
        return Journal(path, parsed[0], iterations, chain), note

    def append(self, record: Iteration) -> None:
        """Write one iteration and wait until it is on disk. Raises SaveError; the file is then as it was before."""
        text, chain = seal(record.to_json(), self._chain)
        _append(self.path, text)
        self.iterations.append(record)
        self._chain = chain


def _append(path: Path, text: str, new: bool = False) -> None:
    size = 0 if new else path.stat().st_size
    try:
        with path.open("wb" if new else "ab") as f:
            f.write(text.encode())
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        if path.exists():
            os.truncate(path, size)
        raise SaveError(
            f"cannot write {path}: {e.strerror or e}. The iterations before are safe: mend it, then use --resume."
        ) from e
