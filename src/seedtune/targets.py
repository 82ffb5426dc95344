"""What a user names on the command line: a model, a run, or a patch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import config_file
from .journal.folder import RunFolder
from .journal.patch import MAGIC, Patch
from .tasks.reward import BUILTIN

#: Of a run's settings, those that tell how to measure it: what it was asked, and how it is loaded.
_HOW = (
    "task dataset_name dataset_config dataset_train_split dataset_test_split max_eval_samples reward_funcs eval_funcs "
    "reward_weights max_completion_length chat_template_kwargs model_revision dtype"
).split()
_WHAT = _HOW[: _HOW.index("max_completion_length") + 1]


@dataclass(frozen=True)
class Target:
    """The model to load; the base model that it began as, and that one's digest (None: unknown)."""

    model: str
    base: str | None = None
    digest: str | None = None


@contextmanager
def located(name: str, base: str | None = None) -> Iterator[Target]:
    """Where the model is, while the context lasts; `base` is where its base model is, if not where it was.

    A run is its newest checkpoint; without one, and for a patch, the model is rebuilt from its base into a temporary
    folder. Raises JournalError, ModelError.
    """
    patch = _patch(name)
    if patch is None:
        yield Target(name, base)
        return
    began = base or str(patch.header["base"]["model"])
    digest = str(patch.header["base"]["digest"])
    checkpoints = RunFolder(name).checkpoints() if Path(name).expanduser().is_dir() else []
    if checkpoints:
        yield Target(str(checkpoints[-1]), began, digest)
        return
    from .replay import rebuild

    with TemporaryDirectory() as folder:
        engine = rebuild([patch], base)
        engine.save(Path(folder))
        del engine
        yield Target(folder, began, digest)


def own_settings(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """How a run (or a patch) was trained, as defaults to measure it; nothing for another model. Its task is not taken
    where `given` names another task or other data; nor are, from a patch, functions that are not built in.
    """
    file = Path(name).expanduser() / "config.resolved.yaml"
    patch = None if file.is_file() else _patch(name)
    found = config_file.read(file) if file.is_file() else dict(patch.header["config"]) if patch else {}
    if not file.is_file():  # a file from elsewhere does not say which code is run here
        for key in ("reward_funcs", "eval_funcs"):
            if not all(isinstance(name, str) and name in BUILTIN for name in found.get(key) or []):
                del found[key]
    other = any(key in given for key in ("task", "dataset_name"))
    return {k: v for k, v in found.items() if k in _HOW and v is not None and not (other and k in _WHAT)}


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
