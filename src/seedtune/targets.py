"""What a user names on the command line: a model, a run, or a patch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .journal.folder import RunFolder
from .journal.patch import MAGIC, Patch


@contextmanager
def located(name: str) -> Iterator[tuple[str, str | None]]:
    """The model to load, and the base model that it began as (None: unknown), while the context lasts.

    A run is its newest checkpoint; without one, and for a patch, the model is rebuilt from its base into a temporary
    folder. Raises JournalError, ModelError.
    """
    patch = _patch(name)
    if patch is None:
        yield name, None
        return
    base = str(patch.header["base"]["model"])
    checkpoints = RunFolder(name).checkpoints() if Path(name).expanduser().is_dir() else []
    if checkpoints:
        yield str(checkpoints[-1]), base
        return
    from .replay import rebuild

    with TemporaryDirectory() as folder:
        engine = rebuild([patch])
        engine.save(Path(folder))
        del engine
        yield folder, base


def _patch(name: str) -> Patch | None:
    """What was journaled, for a run or a patch."""
    from .replay import load

    file = Path(name).expanduser()
    if file.is_dir():
        return load(file) if RunFolder(file).has_journal else None
    if file.is_file():
        with file.open("rb") as f:
            return load(file) if f.read(len(MAGIC)) == MAGIC or file.name.endswith(".jsonl") else None
    return None
