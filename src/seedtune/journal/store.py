"""`journal.jsonl`: append-only, on disk before an iteration counts as done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import JournalError, SaveError
from ..utils.paths import AnyPath, local_path
from .record import ROOT, Iteration, Record, Return, check_header, contiguous, parse, seal, unseal

NAME = "journal.jsonl"


class Journal:
    """A header, one record per iteration, and between them returns to an earlier center."""

    def __init__(self, path: Path, header: Mapping[str, Any], records: Sequence[Record], chain: str) -> None:
        self.path, self.header, self._chain = path, header, chain
        self.iterations = [r for r in records if isinstance(r, Iteration)]
        self.returns = [r for r in records if isinstance(r, Return)]

    @property
    def center(self) -> int:
        """The iteration after which the center was what it is at the end of the journal."""
        last = len(self.iterations)
        return next((r.to for r in reversed(self.returns) if r.t == last), last)

    def trajectory(self, until: int) -> list[Iteration]:
        """The iterations whose updates, one after another, make the center that there was right after iteration
        `until`: all up to it, without those that a return undid.
        """
        before = {r.t + 1: r.to for r in self.returns}  # what an iteration that follows a return began from
        found, t = [], until
        while t > 0:
            found.append(self.iterations[t - 1])
            t = before.get(t, t - 1)
        return found[::-1]

    @staticmethod
    def create(folder: AnyPath, header: Mapping[str, Any]) -> Journal:
        """Begin the journal of a run in its folder. Raises SaveError."""
        text, chain = seal(header, ROOT)
        path = local_path(folder) / NAME
        _append(path, text, new=True)
        return Journal(path, header, (), chain)

    @staticmethod
    def read(place: AnyPath, repair: bool = True) -> tuple[Journal, str | None]:
        """The journal of a run (its folder, or the file), and a note when its last line was incomplete; `repair`
        removes that line from the file.

        Raises JournalError that names the line for any other damage.
        """
        path = local_path(place)
        path = path / NAME if path.is_dir() else path
        data = path.read_bytes()
        lines = data.split(b"\n")
        torn = lines.pop()
        chain, parsed = ROOT, []
        for number, raw in enumerate(lines, 1):
            try:
                line, chain = unseal(raw.decode(), chain)
            except (ValueError, KeyError) as e:
                advice = "The iterations before it are intact; a copy that ends before that line can be resumed."
                if number == 1:
                    advice = "It is neither a journal nor a patch, or its header is damaged: it cannot be used."
                raise JournalError(f"{path}, line {number} is damaged: {e}. {advice}") from None
            parsed.append(line)
        if not parsed:
            raise JournalError(f"{path} is empty, or has no complete line: no run has started there.")
        check_header(parsed[0], str(path))
        try:
            records = [parse(line) for line in parsed[1:]]
        except (KeyError, TypeError, ValueError) as e:
            raise JournalError(f"{path} has a line that is not an iteration ({e!r}): it is not a journal.") from None
        contiguous(records, str(path))
        note = None
        if torn:
            if repair:
                with path.open("r+b") as f:
                    f.truncate(len(data) - len(torn))
            note = f"the last line of {path.name} was incomplete ({len(torn)} bytes) and was dropped"
        return Journal(path, parsed[0], records, chain), note

    def append(self, record: Record) -> None:
        """Write one record and wait until it is on disk. Raises SaveError; the file is then as it was before."""
        text, chain = seal(record.to_json(), self._chain)
        _append(self.path, text)
        if isinstance(record, Iteration):
            self.iterations.append(record)
        else:
            self.returns.append(record)
        self._chain = chain


def _append(path: Path, text: str, new: bool = False) -> None:
    try:
        size = 0 if new else path.stat().st_size
    except FileNotFoundError as e:
        raise SaveError(f"{path} is gone: it was moved or deleted. Put it back to where it was, then resume.") from e
    try:
        with path.open("wb" if new else "ab") as f:
            f.write(text.encode())
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        with suppress(OSError):  # what could not be written to at all is as it was
            os.truncate(path, size)
        raise SaveError(
            f"cannot write {path}: {e.strerror or e}. The iterations before are safe: fix that, then use --resume."
        ) from e
