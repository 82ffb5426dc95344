"""What the packages export is documented: every class, function, method and property, with the errors that it raises,
the shapes of arrays and the units of durations and sizes, as far as the code shows them.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import pages
import seedtune

SOURCE = Path(seedtune.__file__).parent

#: Axes in a name, as rewards_M_P has them; or in words, as in [members, prompts], or "in the shapes of".
AXES = re.compile(r"_[A-Z](_[A-Z])*$")
IN_WORDS = re.compile(r"\[[\w ,/-]+\]|shapes\s+of\b|own shape\b")
#: Annotations of arrays. Tensors by name are the parameters of a model, in shapes of their own.
ARRAY = re.compile(r"\b(NDArray|Tensor|Floats)\b")
BY_NAME = re.compile(r"^(Mapping|dict|Iterator\[tuple)\[str, ")
#: Names of what has a unit, and how docstrings say it.
UNITS = {
    re.compile(r"(^|_)(timeout|seconds)(_left)?$"): re.compile(r"\bseconds?\b", re.IGNORECASE),
    re.compile(r"^(memory|disk|output)$|_memory$|checkpoint_size"): re.compile(r"\b(GB|MiB|bytes)\b", re.IGNORECASE),
    re.compile(r"\b(step_kl|divergence\w*)$"): re.compile(r"\bnats\b"),
}


@dataclasses.dataclass(frozen=True)
class Public:
    """Something that is exported, or a method or property of a class that is."""

    name: str
    thing: Any
    owner: type | None = None

    @property
    def function(self) -> FunctionType | None:
        """What runs when it is called or read."""
        thing = self.thing
        if isinstance(thing, property):
            return thing.fget
        if isinstance(thing, functools.cached_property):
            return thing.func
        thing = getattr(thing, "__func__", thing)
        return inspect.unwrap(thing) if inspect.isfunction(thing) else None

    @property
    def docstring(self) -> str:
        """Its own; else that of the method which it overrides, or of the protocol that its class says it follows."""
        if self.owner is None:
            return inspect.getdoc(self.thing) or ""
        name = self.name.rpartition(".")[2]
        for cls in [*self.owner.__mro__, *protocols(self.owner)]:
            if doc := inspect.getdoc(vars(cls).get(name)) if name in vars(cls) else None:
                return doc
        return ""


def protocols(cls: type) -> list[type]:
    """The exported protocols that a class's docstring names, with those that they are made of."""
    named = re.findall(r"`(\w+)`", cls.__doc__ or "")
    found = [thing for thing in exported().values() if getattr(thing, "_is_protocol", False)]
    return [base for thing in found if thing.__name__ in named for base in thing.__mro__]


@functools.cache
def exported() -> dict[str, Any]:
    """What packages export, by its name there, and what the reference shows."""
    found = {}
    for init in sorted(SOURCE.rglob("__init__.py")):
        package = ".".join(["seedtune", *init.parent.relative_to(SOURCE).parts])
        for name in getattr(importlib.import_module(package), "__all__", []):
            found[f"{package}.{name}"] = getattr(importlib.import_module(package), name)
    for name in re.findall(r"(?m)^::: (\S+)", (pages.ROOT / "docs" / "reference" / "python.md").read_text()):
        module, _, attribute = name.rpartition(".")
        if name != "seedtune.errors":
            found[name] = getattr(importlib.import_module(module), attribute)
    found |= {f"seedtune.errors.{name}": e for name, e in vars(seedtune.errors).items() if inspect.isclass(e)}
    return found


def members(name: str, cls: type) -> Iterator[Public]:
    """Methods and properties, our own bases' among them; of those that are overridden the last."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("seedtune")]
    for member in {member: None for base in ours for member in vars(base) if not member.startswith("_")}:
        thing = inspect.getattr_static(cls, member)
        public = Public(f"{name}.{member}", thing, cls)
        if public.function is not None and public.function.__module__.startswith("seedtune"):
            yield public


def public() -> list[Public]:
    by_thing = {id(thing): (name, thing) for name, thing in reversed(exported().items())}  # by its shortest name
    things = [Public(*pair) for pair in by_thing.values() if inspect.isclass(pair[1]) or inspect.isroutine(pair[1])]
    return [*things, *(m for p in things if inspect.isclass(p.thing) for m in members(p.name, p.thing))]


ALL = [pytest.param(p, id=p.name.removeprefix("seedtune.")) for p in public()]


@functools.cache
def definitions(module: str) -> dict[str, list[ast.AST]]:
    """Functions of a module by their name, methods by that of their class, too: `load`, `Journal.read`."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.parse(inspect.getsource(importlib.import_module(module))).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for function in inner:
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                found.setdefault(prefix + function.name, []).append(function)
    return found


def raised(module: str, name: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """Names of the errors in `raise` statements of a function, and of the private ones of its module that it calls."""
    if name in seen:
        return set()
    return {e for function in definitions(module).get(name, []) for e in _raised(function, module, name, seen | {name})}


def _raised(node: ast.AST, module: str, name: str, seen: frozenset[str]) -> set[str]:
    """Below a node of the function `name`, without what a `try` around it catches."""
    if isinstance(node, ast.Try):
        caught = {e.id for h in node.handlers if h.type for e in ast.walk(h.type) if isinstance(e, ast.Name)}
        inside = {e for child in node.body for e in _raised(child, module, name, seen)}
        others = [*node.handlers, *node.orelse, *node.finalbody]
        return inside - caught | {e for child in others for e in _raised(child, module, name, seen)}
    found = {e for child in ast.iter_child_nodes(node) for e in _raised(child, module, name, seen)}
    if isinstance(node, ast.Raise) and node.exc:
        error = getattr(node.exc.func if isinstance(node.exc, ast.Call) else node.exc, "id", "")
        found |= {error} if error[:1].isupper() and error != "NotImplementedError" else set()
    if isinstance(node, ast.Call):
        called = getattr(node.func, "id", "")
        if isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") in ("self", "cls"):
            called = f"{name.rpartition('.')[0]}.{node.func.attr}"
        if called.rpartition(".")[2].startswith("_"):
            found |= raised(module, called, seen)
    return found


def errors(p: Public) -> set[str]:
    if inspect.isclass(p.thing):
        ours = [base for base in p.thing.__mro__ if base.__module__.startswith("seedtune")]
        made = ("__new__", "__init__", "__post_init__")
        return {e for base in ours for name in made for e in raised(base.__module__, f"{base.__qualname__}.{name}")}
    return raised(p.function.__module__, p.function.__qualname__) if p.function else set()


def arguments(p: Public) -> dict[str, tuple[str, str]]:
    """Annotation and documentation of each parameter, or field of a dataclass; under its own name what is returned."""
    if dataclasses.is_dataclass(p.thing):
        fields = [f for f in dataclasses.fields(p.thing) if not f.name.startswith("_")]
        said = "\n".join([p.docstring, *re.findall(r"(?m)^ *#: (.*)", inspect.getsource(p.thing))])
        return {f.name: (str(f.type), f.metadata.get("help", said)) for f in fields}
    function = p.thing.__init__ if inspect.isclass(p.thing) else p.function
    if not inspect.isfunction(function):
        return {}
    hints = {name: str(hint) for name, hint in function.__annotations__.items()}
    returned = hints.pop("return", "None")
    name = p.name.rpartition(".")[2]
    return {**{n: (h, p.docstring) for n, h in hints.items()}, **({name: (returned, p.docstring)} if p.owner else {})}


@pytest.mark.parametrize("p", ALL)
def test_has_a_docstring(p):
    assert len(p.docstring.split()) > 1


@pytest.mark.parametrize("p", ALL)
def test_says_which_errors_it_raises(p):
    """In its own docstring, or that of its class."""
    said = p.docstring + (p.owner.__doc__ or "" if p.owner else "")
    assert [error for error in sorted(errors(p)) if error not in said] == []


@pytest.mark.parametrize("p", ALL)
def test_arrays_have_their_axes(p):
    arrays = {name: doc for name, (hint, doc) in arguments(p).items() if ARRAY.search(hint) and not BY_NAME.match(hint)}
    assert [name for name, doc in arrays.items() if not (AXES.search(name) or IN_WORDS.search(doc))] == []


@pytest.mark.parametrize("p", ALL)
def test_durations_and_sizes_have_a_unit(p):
    for name, (_, doc) in arguments(p).items():
        for named, said in UNITS.items():
            assert not named.search(name) or said.search(doc), name


@pytest.mark.parametrize("name", ["seedtune.ESTrainer", "seedtune.data.load"])
def test_the_parameters_of_what_users_call_are_explained(name):
    thing = exported()[name]
    assert [n for n in inspect.signature(thing).parameters if f"`{n}`" not in inspect.getdoc(thing)] == []


def test_the_checks_see_what_they_look_for():
    """So that they do not pass for having found nothing."""
    by_name = {p.name: p for p in public()}
    assert len(by_name) > 250
    assert errors(by_name["seedtune.ESTrainer"]) >= {"ConfigError"}
    assert errors(by_name["seedtune.journal.Journal.read"]) == {"JournalError"}
    assert arguments(by_name["seedtune.es.shape"])["rewards_M_P"][0] == "Floats"
    assert by_name["seedtune.engines.HFEngine.digest"].docstring == by_name["seedtune.engines.Weights.digest"].docstring
