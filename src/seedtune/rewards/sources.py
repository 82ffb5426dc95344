"""Modules of the user's own that reward functions and tools import: other nodes lack them, so sources are sent."""

from __future__ import annotations

import ast
import pickletools
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import cloudpickle

#: Sources of modules by their names: the file, and what is in it.
Sources = Mapping[str, tuple[str, bytes]]
_PROCESS = uuid4().hex


def is_own(module: str, file: str | None) -> bool:
    """Whether a module of that file is the user's, not of Python, of an installed package, or ours."""
    if file is None or module.partition(".")[0] == "seedtune":
        return False
    folders = Path(file).resolve().parents
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")}
    packages = {"site-packages", "dist-packages"}
    return not any(folder in installed or folder.name in packages for folder in folders)


def with_sources(pickled: bytes, modules: Iterable[ModuleType | None] = ()) -> bytes:
    """The same object as `pickled`, with the sources of the user's modules that it refers to, or that `modules` import.
    Where it is unpickled, they can be imported.
    """
    names = {*_strings(pickled)} & {*sys.modules}
    for module in modules:
        if module and (code := _code(module.__name__, getattr(module, "__file__", None))):
            names |= {*_imported(code, module.__package__ or "")}
    sources = _sources(names)
    return bytes(cloudpickle.dumps(_Carried(sources, pickled))) if sources else pickled


class _Carried:
    """Unpickles as what is within."""

    def __init__(self, sources: Sources, pickled: bytes) -> None:
        self.sources, self.pickled = sources, pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (_PROCESS, self.sources, self.pickled)


def _restored(process: str, sources: Sources, pickled: bytes) -> Any:
    if process != _PROCESS:  # here they are imported from their files, which may change
        _FINDER.sources |= sources
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)  # a node may have others of the same names
    return cloudpickle.loads(pickled)  # of this run


class _Finder(MetaPathFinder):
    """Finds modules whose sources were sent."""

    def __init__(self) -> None:
        self.sources: dict[str, tuple[str, bytes]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.sources:
            return None
        return spec_from_loader(fullname, _Loader(*self.sources[fullname]))


class _Loader(SourceLoader):
    def __init__(self, file: str, code: bytes) -> None:
        self.file, self.code = file, code

    def get_filename(self, fullname: str) -> str:
        return self.file

    def get_data(self, path: str | bytes) -> bytes:
        if path != self.file:  # what lies beside it
            raise FileNotFoundError(f"{path!r} was not sent with the code")
        return self.code


_FINDER = _Finder()


def _sources(names: Iterable[str]) -> dict[str, tuple[str, bytes]]:
    """Of those that are the user's, of their packages, and of what they import."""
    found: dict[str, tuple[str, bytes]] = {}
    left, seen = [*names], {"__main__"}
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        file, folders = _place(name)
        if (code := _code(name, file)) is None:
            continue
        package = name.rpartition(".")[0]
        found[name] = file, code
        left += [package, *_imported(code, name if folders else package)]
    for name in [*found]:  # folders without __init__.py
        while name := name.rpartition(".")[0]:
            found.setdefault(name, (f"{name}/__init__.py", b""))
    return found


def _code(module: str, file: str | None) -> bytes | None:
    """None: not the user's own, or nothing that can be read."""
    if not file or not file.endswith(".py") or not is_own(module, file):
        return None
    with suppress(OSError):
        return Path(file).read_bytes()
    return None


def _place(name: str) -> tuple[str, list[str]]:
    """The file of a module (empty: it has none that can be read) and, of a package, its folders. Imports nothing."""
    if spec := getattr(sys.modules.get(name), "__spec__", None):
        return spec.origin or "", list(spec.submodule_search_locations or [])
    package, _, last = name.rpartition(".")
    if not last or (not package and last in sys.stdlib_module_names):
        return "", []
    bare = []
    for folder in _place(package)[1] if package else sys.path:
        own = Path(folder, last)
        if (whole := own / "__init__.py").is_file():
            return str(whole), [str(own)]
        if (alone := own.with_name(f"{last}.py")).is_file():
            return str(alone), []
        bare += [str(own)] * own.is_dir()
    return "", bare


def _imported(code: bytes, package: str) -> Iterator[str]:
    """Names of what a module of this package imports, anywhere in its code; of `from a import b`, both a and a.b."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])])
            base = base if node.level else str(node.module)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _strings(pickled: bytes) -> Iterator[str]:
    """All texts in a pickle: names of modules among them."""
    for _, argument, _ in pickletools.genops(pickled):
        if isinstance(argument, str):
            yield argument
