"""GGUF files, dequantized once: models are kept as safetensors in the cache folder, under the digest of the file."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import ConfigError
from ..utils.cache import cache_folder
from ..utils.files import save_whole
from ..utils.locks import lock

log = logging.getLogger(__name__)
T = TypeVar("T")

#: GB that all of them together may take; more needs `SEEDTUNE_CACHE_GB`, and 0 keeps none.
LIMIT = 20.0
_USED = "used"  # a file whose time is that of the last use


def folder_of(file: Path, dtype: torch.dtype) -> Path:
    """Where a GGUF file's model is kept, or would be: what is there depends on the file's bytes, the dtype and the
    version of transformers, which dequantizes.
    """
    with file.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()[:32]
    name = f"{digest}-{str(dtype).removeprefix('torch.')}-{version('transformers')}"
    return cache_folder() / "gguf" / name


def load_through(entry: Path, load: Callable[[Path], T], make: Callable[[], T], save: Callable[[T, Path], None]) -> T:
    """What `load` reads from the entry; where that is not there, or is damaged, what `make` makes, which is then saved.

    Processes that want the same entry at once wait for the first. Where nothing can be kept (a full disk, a limit that
    is too low), the model is made anew each time, and a message says why.
    """
    limit = _limit()
    if not limit:
        return make()
    with _holding(entry) as held:
        if not held:
            return make()
        if entry.is_dir():
            try:
                found = load(entry)
            except Exception as e:  # whatever reading damaged files raises
                log.warning("%s cannot be read (%s): it is made again.", entry, type(e).__name__)
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):
                    (entry / _USED).touch()
                return found
        made = make()
        try:
            save_whole(entry, lambda draft: _write(made, draft, save))
        except OSError as e:
            log.warning("The model is dequantized again at the next start: %s", e)
            return made
        _evict(entry.parent, keep=entry, limit=limit)
        return load(entry) if entry.is_dir() else made


def _write(made: T, draft: Path, save: Callable[[T, Path], None]) -> None:
    save(made, draft)
    (draft / _USED).touch()
    for file in draft.iterdir():  # a crash of the machine must not leave files that only look whole
        with file.open("rb") as f:
            os.fsync(f.fileno())


def _limit() -> float:
    """Bytes that may be kept. Raises ConfigError."""
    given = os.environ.get("SEEDTUNE_CACHE_GB", "")
    try:
        limit = float(given) if given else LIMIT
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise ConfigError(f"SEEDTUNE_CACHE_GB is a number of GB (0: keep nothing), got {given!r}.")
    return limit * 1e9


@contextmanager
def _holding(entry: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of an entry; whether that can be had: another process may hold it, or nothing can be written."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        file = entry.with_name(f"{entry.name}.lock").open("a+")
    except OSError:
        yield False
        return
    with file:
        told = False
        while True:
            try:
                lock(file)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                if not told:
                    log.info("Waiting for another process that reads or makes the same model, in %s.", entry)
                told = True
                time.sleep(0.1)
            else:
                break
        yield True


def _evict(folder: Path, keep: Path, limit: float) -> None:
    """Remove the entries that were not used for longest, until all are within the limit, and what killed processes left
    of their drafts; those in use by another process stay.
    """
    entries = [path for path in folder.iterdir() if path.is_dir()]
    drafts = [path for path in entries if path.name.startswith(".")]
    for draft in drafts:
        with _holding(folder / draft.name.removeprefix(".").rsplit(".", 2)[0], wait=False) as held:
            if held:
                shutil.rmtree(draft, ignore_errors=True)
    whole = sorted((path for path in entries if path not in drafts and path != keep), key=_last_use)
    whole.append(keep)  # the last to go: it is larger than the limit, then
    total = sum(map(_size, whole))
    for entry in whole:
        if total <= limit:
            return
        with nullcontext(True) if entry == keep else _holding(entry, wait=False) as held:
            if held:
                total -= _size(entry)
                shutil.rmtree(entry, ignore_errors=True)


def _last_use(entry: Path) -> float:
    try:
        return (entry / _USED).stat().st_mtime
    except OSError:
        return 0.0


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*"))
