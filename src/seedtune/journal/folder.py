"""The folder of a run: the files beside the journal. Every file is written under a temporary name, then renamed."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from ..errors import RunFolderError, SaveError
from ..utils.files import read_lines, save_whole, write_lines
from ..utils.locks import lock
from ..utils.paths import AnyPath, local_path
from .store import NAME as JOURNAL

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
#: Metrics of 0.1.0, and their names now.
_RENAMED = {"fleet/utilisation": "fleet/utilization", "fleet/asked_twice": "fleet/speculative"}
LOCK = ".lock"
#: `checkpoint-best`: not the checkpoint of one iteration for good.
BEST = "best"
#: Of a checkpoint: what a resume needs beside the model, and what it says of itself.
STATE, CARD = "state.safetensors", "README.md"


class RunFolder:
    """`output_dir` of one run: where it is, wherever the process goes meanwhile; and as it was `given`, to show it."""

    def __init__(self, path: AnyPath) -> None:
        self.given = local_path(path)
        self.path = self.given.absolute()
        self._lock: IO[str] | None = None

    @property
    def base(self) -> Path:
        """Where the base model is kept, if it is stored nowhere else."""
        return self.path / "base"

    @property
    def has_journal(self) -> bool:
        """Whether a run was started here."""
        return (self.path / JOURNAL).exists()

    @property
    def holds_a_run(self) -> bool:
        """Whether the journal has at least one iteration; one with a header only may be overwritten."""
        journal = self.path / JOURNAL
        return journal.exists() and journal.read_bytes().count(b"\n") > 1

    def check(self, resume: bool) -> None:
        """Raise RunFolderError when it holds another run (without `resume`) or none (with it), or what a run would
        overwrite; when another process has locked it, or when it is no folder and cannot become one. Writes nothing.
        """
        self._check_place()
        if self._lock is None and (self.path / LOCK).exists():
            with suppress(PermissionError), (self.path / LOCK).open() as held:
                self._take(held)
        if resume and not self.has_journal:
            raise RunFolderError(f"{self.given} holds no run to resume: there is no {JOURNAL}. Check output_dir.")
        if not resume and self.holds_a_run:
            raise RunFolderError(
                f"{self.given} holds another run. Continue it with --resume (in Python: "
                "train(resume_from_checkpoint=True)), or give another output_dir; nothing in it was changed."
            )
        if not self.has_journal and (there := self._in_the_way()):
            raise RunFolderError(
                f"{self.given} holds {', '.join(there[:3])}, which a run would overwrite, and no {JOURNAL}: this is of "
                "another program, or of a run whose journal is gone. Give another output_dir, or move them away."
            )

    def _in_the_way(self) -> list[str]:
        """Files and folders in the places of those that a run writes and removes."""
        names = [METRICS, self.base.name, f"checkpoint-{BEST}"]
        return [name for name in names if (self.path / name).exists()] + [p.name for p in self.checkpoints()]

    def _check_place(self) -> None:
        try:
            above = next(place for place in (self.path, *self.path.absolute().parents) if _is_there(place))
        except (OSError, ValueError) as e:  # too long, or with a character that no name has
            reason = getattr(e, "strerror", None) or e
            raise RunFolderError(f"output_dir {str(self.path)[:200]!r} cannot be a folder: {reason}.") from None
        if not above.is_dir():
            what = "a link that leads nowhere" if above.is_symlink() else "a file"
            raise RunFolderError(f"cannot write into {self.given}: {above} is {what}. Choose another output_dir.")

    def check_is_here(self, path: bool | AnyPath) -> None:
        """Raise RunFolderError when a resume names another folder than this, or an older state than the newest."""
        if isinstance(path, str | os.PathLike):
            named = local_path(path).resolve()
            newest = [checkpoint.resolve() for checkpoint in self.checkpoints()[-1:]]
            if named not in [self.path.resolve(), *newest]:
                raise RunFolderError(
                    f"resume_from_checkpoint names {os.fspath(path)}, but a run resumes at the end of its own journal: "
                    f"set output_dir to the run's folder (it is {self.given}) and resume_from_checkpoint=True."
                )

    def claim(self, resume: bool) -> None:
        """Lock the folder for this process, until `release`, and remove incomplete files of a killed process.

        Raises RunFolderError as `check` does, and when it cannot be written or another process has locked it. Warns
        where there are no locks.
        """
        self.check(resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / LOCK).open("a+")
        except OSError as e:
            raise RunFolderError(
                f"cannot write into {self.given}: {e.strerror or e}. Choose another output_dir."
            ) from e
        try:
            if not self._take(self._lock):
                log.warning(
                    f"{self.given} cannot be locked: this system, or the file system of that folder, has no locks. "
                    "Nothing keeps a second run out of it: start only one there."
                )
        except RunFolderError:
            self.release()
            raise
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        self._lock.flush()
        self.check(resume)
        for draft in self.path.glob(".checkpoint-*.tmp"):
            shutil.rmtree(draft, ignore_errors=True)
        if not resume:
            for left in (JOURNAL, METRICS):
                (self.path / left).unlink(missing_ok=True)
            for stale in (self.path / f"checkpoint-{BEST}", self.base):
                shutil.rmtree(stale, ignore_errors=True)

    def _take(self, file: IO[str]) -> bool:
        """Lock the file; whether there are locks. Raises RunFolderError when another process holds it."""
        try:
            return lock(file)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunFolderError(
                f"{self.given} is in use by {holder}: wait for it, or end it, then use --resume."
            ) from None

    def draft(self) -> TemporaryDirectory[str]:
        """A folder in it for what is not to stay; what a killed process leaves of it, the next `claim` removes."""
        return TemporaryDirectory(prefix=".checkpoint-", suffix=".tmp", dir=self.path)

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Add a line to `metrics.jsonl`. Raises SaveError."""
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as f:
                f.write(json.dumps(metrics) + "\n")
        except OSError as e:
            raise SaveError(f"cannot write {self.path / METRICS}: {e.strerror or e}.") from e

    def metrics(self, until: int | None = None) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; with `until`, those of later iterations are dropped from the file first."""
        lines = [row for row in read_lines(self.path / METRICS) if "step" in row]
        rows = [{_RENAMED.get(k, k): v for k, v in row.items()} for row in lines]
        if until is not None:
            rows = [row for row in rows if row["step"] <= until]
            write_lines(self.path / METRICS, rows)
        return rows

    def completions(self, name: str) -> Path:
        """The file of that name in `completions/`, e.g. `eval-10`."""
        return self.path / "completions" / f"{name}.jsonl"

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = [p for p in self.path.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
        return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))

    def best(self) -> int | None:
        """The iteration after which the center was best so far (0: the base model); None: that was not tracked."""
        return best_step(read_lines(self.path / METRICS))

    def result(self) -> Path | None:
        """What the run hands back so far: `checkpoint-best`, or its newest checkpoint."""
        best = self.path / f"checkpoint-{BEST}"
        return best if best.is_dir() else next(reversed(self.checkpoints()), None)

    def save_checkpoint(self, step: int | str, write: Callable[[Path], None], limit: int | None = None) -> Path:
        """Let `write` fill a folder, then rename it; the oldest checkpoints beyond `limit` are removed, but for the
        best. `step`: an iteration, or `best`.

        Raises SaveError (a full disk); what was there before is untouched, and no partial checkpoint is left.
        """
        target = self.path / f"checkpoint-{step}"
        save_whole(target, write)
        for old in self.checkpoints()[: -limit if limit else 0]:
            if old != target:
                shutil.rmtree(old)
        return target


def _is_there(path: Path) -> bool:
    """Also a link that leads nowhere. Raises OSError and ValueError for what cannot be a path."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def best_step(metrics: Sequence[Mapping[str, Any]]) -> int | None:
    """The iteration after which the center was best, by the last of these lines that says so; None: none does."""
    return next((int(row["es/best_step"]) for row in reversed(metrics) if "es/best_step" in row), None)
