"""What of this machine's Python a program in the sandbox sees: the interpreter, its standard library, and the shared
libraries of both. No packages, nothing else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from ..errors import SandboxError

PREFIX = "/python"
#: The interpreter of this process; of a virtual environment, the one that it was made with.
HERE = str(Path(getattr(sys, "_base_executable", None) or sys.executable).resolve())
#: Modules with libraries of a desktop, which a program without a display has no use for.
_LEFT_OUT = ("_tkinter", "_test", "_ctypes_test", "_xx")


@cache
def binds() -> tuple[tuple[str, str], ...]:
    """Files and folders of this machine, and where they are in the sandbox. Raises SandboxError where the shared
    libraries cannot be listed.
    """
    library = Path(sysconfig.get_path("stdlib")).resolve()
    extensions = Path(sysconfig.get_config_var("DESTSHARED") or library / "lib-dynload").resolve()
    found = [(HERE, interpreter()), (str(library), _inside(library))]
    if extensions.is_dir() and not extensions.is_relative_to(library):
        found.append((str(extensions), _inside(extensions)))
    modules = [m for m in extensions.glob("*.so") if not m.name.startswith(_LEFT_OUT)]
    found += [(path, f"/lib/{name}") for name, path in _shared_libraries([Path(HERE), *modules]).items()]
    return tuple(found)


def covered() -> list[str]:
    """Folders of installed packages within those, as they are called in the sandbox, which a program does not see."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    folders = ("site-packages", "dist-packages")
    return [_inside(library / folder) for folder in folders if (library / folder).is_dir()]


def interpreter() -> str:
    """The interpreter, as it is called in the sandbox."""
    return f"{PREFIX}/bin/{Path(HERE).name}"


def _inside(path: Path) -> str:
    """Where Python, started from `PREFIX`, looks for a part of its library."""
    for prefix in (sys.base_prefix, sys.base_exec_prefix):
        if path.is_relative_to(Path(prefix).resolve()):
            return f"{PREFIX}/{path.relative_to(Path(prefix).resolve())}"
    return f"{PREFIX}/{sys.platlibdir}/python{sys.version_info.major}.{sys.version_info.minor}/{path.name}"


def _shared_libraries(files: list[Path]) -> dict[str, str]:
    """The shared libraries that these load, by the names that they load them by."""
    try:
        listed = subprocess.run(
            ["ldd", *map(str, files)], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as e:
        raise SandboxError(f"the sandbox cannot list Python's shared libraries: ldd: {e}. Install libc-bin.") from None
    paths = re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", listed, re.MULTILINE)
    paths += _beside(paths, "libgcc_s.so.1")  # the C library loads it when a thread ends
    named = {os.path.basename(path): path for path in paths}
    for name, path in re.findall(r"^\s+(\S+) => (/\S+) \(0x", listed, re.MULTILINE):
        named[os.path.basename(name)] = path
    return named


def _beside(paths: list[str], name: str) -> list[str]:
    folders = dict.fromkeys(os.path.dirname(path) for path in paths)
    return [path for folder in folders if os.path.exists(path := os.path.join(folder, name))][:1]
