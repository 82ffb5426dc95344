"""Files that are written as a whole or not at all, and JSONL; and what to do about a disk that does not take them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ..errors import SaveError


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all. Half of a surrogate pair, which UTF-8 has not, is written as JSON writes
    it. Raises SaveError.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


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
        with suppress(OSError):
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
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def save_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `target`, then give it that name. Raises SaveError (a full disk, a quota); what
    was there before is untouched, and no half folder is left.
    """
    target = target.absolute()
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with explain_disk(target):
        try:
            draft.mkdir(parents=True)
            write(draft)
            if target.exists():
                shutil.rmtree(target)
            draft.rename(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


@contextmanager
def explain_disk(target: Path) -> Iterator[None]:
    """Raise SaveError, which says what to do, for an error of the disk while `target` is written."""
    try:
        yield
    except SaveError:
        raise
    except Exception as e:
        if (cause := storage_error(e)) is None:
            raise
        raise SaveError(
            f"cannot save {target}: {_reason(cause, target)}. What was saved before is safe, the journal too: "
            f"{_cure(cause)}, then try again (a run: with --resume)."
        ) from e


def check_room(folder: Path, size: int, what: str) -> None:
    """Raise SaveError unless the disk (and the user's quota of it) would take `size` more bytes in `folder` now."""
    try:
        if shutil.disk_usage(folder).free < size:  # asked first: allocating more than there is fills the disk meanwhile
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as e:
        if e.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that does not say
            return
        raise SaveError(
            f"{what} takes {size / 2**20:.0f} MB in {folder}, and there it cannot be written: {_reason(e, folder)}. "
            f"Nothing was lost: {_cure(e)}, or choose another folder."
        ) from e


#: What to do about an error of the disk.
_CURES = {
    errno.EDQUOT: "your quota is used up, so delete what you can spare, or ask for more",
    errno.EIO: "the disk itself fails, so check it, or move the folder to another one",
    errno.EROFS: "make the file system writable, or move the folder to another one",
    errno.EACCES: "give yourself the right to write there",
    errno.EPERM: "give yourself the right to write there",
    errno.EFBIG: "the file system takes no file of that size, so move the folder to another one",
}


_FULL = (None, errno.ENOSPC, errno.EDQUOT)


def _cure(error: OSError) -> str:
    known = _CURES.get(error.errno or 0)
    return known or ("make room" if error.errno in _FULL else "look at that place, or choose another one")


def _reason(error: OSError, place: Path) -> str:
    if error.errno not in _FULL:
        return error.strerror or str(error)
    free = shutil.disk_usage(next(p for p in [place.absolute(), *place.absolute().parents] if p.exists())).free / 2**20
    return f"{error.strerror or error} ({free:.0f} MB free)"


def storage_error(error: BaseException) -> OSError | None:
    """The error of the disk that an exception is, or tells of: libraries in Rust (safetensors, tokenizers) put its
    number into their own. None: it is something else.
    """
    if isinstance(error, OSError):
        return error
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if "No space left" in str(error) else None
