"""Where Seedtune keeps what it can make again: converted models, and copies that do not fit into memory."""

from __future__ import annotations

import os
from pathlib import Path

from .paths import local_path


def cache_folder() -> Path:
    """`$SEEDTUNE_CACHE`, else `seedtune` in `$XDG_CACHE_HOME` or `~/.cache`; it need not exist yet."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return local_path(os.environ.get("SEEDTUNE_CACHE") or Path(caches) / "seedtune")
