"""Paths as users give them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

#: A text, a `Path`, or whatever else says which path it is.
AnyPath = str | os.PathLike[str]


def local_path(path: AnyPath) -> Path:
    """The path, with `~` as the home folder; a `~` whose user is not known stays. Paths are expanded where they come
    in, and only there.
    """
    return Path(os.path.expanduser(path))


def path_text(value: Any) -> Any:
    """A path as its text; anything else as it is."""
    return os.fsdecode(value) if isinstance(value, os.PathLike) else value
