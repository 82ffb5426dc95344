"""A run's folder: the files beside the journal. Every file is written to a temporary name and renamed."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import RunFolderError, SaveError
from .store import NAME as JOURNAL

METRICS = "metrics.jsonl"
LOCK = ".lock"


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all. Raises SaveError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`."""
    if path.is_dir() or not path.name:
        raise SaveError(f"cannot write {str(path)!r}: it is a folder. Give the name of a file.")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        draft.replace(path)
    except OSError as e:
        draft.unlink(missing_ok=True)
        raise SaveError(f"cannot write {path}: {e.strerror or e}. Nothing that was there before has changed.") from e


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSONL, as a whole."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file. Lines that are torn or damaged are left out; a missing file has none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def save_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `target`, then give it that name. Raises SaveError (a full disk); what was there
    before is untouched, and no half folder is left.
    """
    target = target.absolute()
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(parents=True)
        write(draft)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    except BaseException as e:
        shutil.rmtree(draft, ignore_errors=True)
        if not (isinstance(e, OSError) or "No space left" in str(e)):
            raise
        free = shutil.disk_usage(next(p for p in target.absolute().parents if p.exists())).free / 2**20
        raise SaveError(
            f"cannot save {target}: {getattr(e, 'strerror', None) or e} ({free:.0f} MB free). What was saved before "
            "is safe, the journal too: make room, then try again (a run: with --resume)."
        ) from e


class RunFolder:
    """`output_dir` of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._lock: IO[str] | None = None

    @property
    def has_journal(self) -> bool:
        """Whether a run was started here."""
        return (self.path / JOURNAL).exists()

    @property
    def holds_a_run(self) -> bool:
        """Whether at least one iteration was done here; a journal of a header alone holds nothing to lose."""
        journal = self.path / JOURNAL
        return journal.exists() and journal.read_bytes().count(b"\n") > 1

    def check(self, resume: bool) -> None:
        """Raise RunFolderError when it holds another run (without `resume`) or none (with it). Writes nothing."""
        if resume and not self.has_journal:
            raise RunFolderError(f"{self.path} holds no run to resume: there is no {JOURNAL}. Check output_dir.")
        if not resume and self.holds_a_run:
            raise RunFolderError(
                f"{self.path} holds another run. Go on with it by --resume, or give another output_dir; "
                "nothing in it was changed."
            )

    def check_is_here(self, place: bool | str) -> None:
        """Raise RunFolderError when a resume names another folder than this, or an older state than the newest."""
        if isinstance(place, str):
            named = Path(place).expanduser().resolve()
            newest = [path.resolve() for path in self.checkpoints()[-1:]]
            if named not in [self.path.resolve(), *newest]:
                raise RunFolderError(
                    f"resume_from_checkpoint names {place}, but a run goes on from the end of its own journal: set "
                    f"output_dir to the run's folder (it is {self.path}) and resume_from_checkpoint=True."
                )

    def claim(self, resume: bool) -> None:
        """Take the folder for this process, until `release`, and clear away what a killed process left half-made.

        Raises RunFolderError as `check`, and when it cannot be written or another process is running in it.
        """
        self.check(resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / LOCK).open("a+")
        except OSError as e:
            raise RunFolderError(f"cannot write into {self.path}: {e.strerror or e}. Choose another output_dir.") from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self.release()
            raise RunFolderError(
                f"{self.path} is in use by {holder}: wait for it, or end it, then use --resume."
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        self._lock.flush()
        self.check(resume)
        for draft in self.path.glob(".checkpoint-*.tmp"):
            shutil.rmtree(draft, ignore_errors=True)
        if not resume:
            for left in (JOURNAL, METRICS):
                (self.path / left).unlink(missing_ok=True)

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as f:
                f.write(json.dumps(metrics) + "\n")
        except OSError as e:
            raise SaveError(f"cannot write {self.path / METRICS}: {e.strerror or e}.") from e

    def metrics(self, until: int | None = None) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; with `until`, those of later iterations are dropped from the file first."""
        rows = read_lines(self.path / METRICS)
        if until is not None:
            rows = [row for row in rows if row["step"] <= until]
            write_lines(self.path / METRICS, rows)
        return rows

    def completions(self, name: str) -> Path:
        return self.path / "completions" / f"{name}.jsonl"

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        found = [p for p in self.path.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
        return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))

    def save_checkpoint(self, step: int, write: Callable[[Path], None], limit: int | None = None) -> Path:
        """Let `write` fill a folder, then give it its name; older ones beyond `limit` are removed after.

        Raises SaveError (a full disk); what was there before is untouched, and no half checkpoint is left.
        """
        target = self.path / f"checkpoint-{step}"
        save_whole(target, write)
        for old in self.checkpoints()[: -limit if limit else 0]:
            if old != target:
                shutil.rmtree(old)
        return target
