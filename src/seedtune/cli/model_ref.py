"""References to a model on the command line: a model, a run, or a patch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..config import yaml_file
from ..journal.folder import RunFolder
from ..journal.patch import MAGIC, Patch
from ..rewards.builtin import FUNCTIONS
from ..utils.paths import local_path

#: The settings of a run that an evaluation uses: data, rewards and lengths, and how the model is loaded.
_USED = (
    "task task_args dataset_name dataset_config dataset_prompt_column dataset_train_split dataset_test_split "
    "max_eval_samples reward_funcs reward_args eval_funcs reward_weights reward_batch tools environment_factory "
    "max_tool_calling_iterations tool_timeout max_completion_length "
    "chat_template_kwargs skip_special_tokens repetition_penalty stop_strings "
    "max_prompt_length model_revision dtype"
).split()
#: Those that depend on the task.
_OF_TASK = _USED[: _USED.index("max_completion_length") + 1]


@dataclass(frozen=True)
class Target:
    """The model to load; its base model, and the digest of that (None: unknown)."""

    model: str
    base: str | None = None
    digest: str | None = None


@contextmanager
def resolve_model(name: str, base: str | None = None) -> Iterator[Target]:
    """Where the model is, until the context ends; `base` is where its base model is, if not where it was.

    A run is its best checkpoint, or its newest; without one, and for a patch, the model is rebuilt from its base into a
    temporary folder. Raises JournalError, ModelError.
    """
    patch = _patch(name)
    if patch is None:
        yield Target(name, base)
        return
    base_model = base or str(patch.header["base"]["model"])
    digest = str(patch.header["base"]["digest"])
    checkpoint = RunFolder(name).result() if local_path(name).is_dir() else None
    if checkpoint:
        yield Target(str(checkpoint), base_model, digest)
        return
    from ..training.replay import rebuild

    with TemporaryDirectory() as folder:
        engine = rebuild([patch], base)
        engine.save(Path(folder))
        del engine
        yield Target(folder, base_model, digest)


def own_settings(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run (or a patch), as defaults for an evaluation; none for another model. Those of its task are
    left out where `given` names a task or a dataset; so are functions that a patch names and that are not built in, and
    its tools.
    """
    file = local_path(name) / "config.resolved.yaml"
    patch = None if file.is_file() else _patch(name)
    found = yaml_file.read(file) if file.is_file() else dict(patch.header["config"]) if patch else {}
    if not file.is_file():  # a file from elsewhere must not name the code that runs here
        for key in ("reward_funcs", "eval_funcs"):
            if not all(isinstance(name, str) and name in FUNCTIONS for name in found.get(key) or []):
                del found[key]
        judges = [args["correct"] for args in (found.get("reward_args") or {}).values() if "correct" in args]
        if not all(isinstance(name, str) and name in FUNCTIONS for name in judges):
            del found["reward_args"]
        found = {key: value for key, value in found.items() if key not in ("tools", "environment_factory")}
    other = any(key in given for key in ("task", "dataset_name"))
    return {k: v for k, v in found.items() if k in _USED and v is not None and not (other and k in _OF_TASK)}


def _patch(name: str) -> Patch | None:
    """The journal of a run, as a patch, or the patch; None for a model."""
    from ..training.replay import load

    file = local_path(name)
    if file.is_dir():
        return load(file) if RunFolder(file).has_journal else None
    if file.is_file():
        with file.open("rb") as f:
            return load(file) if f.read(len(MAGIC)) == MAGIC or file.name.endswith(".jsonl") else None
    return None
