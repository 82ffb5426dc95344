"""Tests from Python source: what of it is a test, and what only sets one up."""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Iterator, Sequence

from .dialogue import MODULES
from .verdict import Asserts, BadTests, parsed

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_IMPORTS = (ast.Import, ast.ImportFrom)
#: Statements that define or import: what they hold runs when it is called, or cannot fail for the code.
_DEFINES = (*_FUNCTIONS, ast.ClassDef, *_IMPORTS)
_ASSIGNS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_TEST_CASE = ("unittest.TestCase", "TestCase")


def split(sources: str | Sequence[str]) -> Asserts:
    """Tests from Python source. Of a text each is one: a statement at its top level that asserts, a function `test...`,
    a method `test...` of a `unittest.TestCase`. Of a list each item is one, unless it has such functions or methods:
    then it is read as a text. What only defines, imports or assigns comes before the next test, and is none.

    Raises BadTests where there is none, and for tests that would be skipped, or that cannot fail.
    """
    bodies = [_running(source) for source in ([sources] if isinstance(sources, str) else sources)]
    nodes = [node for body in bodies for node in body]
    called = _called([node for node in nodes if not isinstance(node, _DEFINES)])
    functions = [node for node in nodes if isinstance(node, _FUNCTIONS)]
    checks = {
        f.name for f in functions if f.name.startswith("test") or any(isinstance(n, ast.Assert) for n in ast.walk(f))
    }
    setup, before, tests, later = list[str](), list[str](), list[str](), list[str]()
    for number, body in enumerate(bodies):
        defined = [list(_defined(node, called)) for node in body]
        if isinstance(sources, str) or any(defined):
            pieces = [(ast.unparse(node), _asserts(node, checks), [node]) for node in body]
        else:
            is_test = any(not isinstance(n, _DEFINES + _ASSIGNS) and can_fail([n]) for n in body)
            pieces, defined = [(sources[number], is_test, body)], [[]]
        for (source, is_test, of), made in zip(pieces, defined, strict=True):
            if made:
                later += made
            elif is_test:
                tests.append("\n".join((*before, source)))
                before = []
            else:  # an import that fails is not the code's fault, so the first ones stand alone
                alone = not tests and not before and all(isinstance(n, _IMPORTS) for n in of)
                (setup if alone else before).append(source)
    if later:  # all else is defined when they are called
        tests += ["\n".join((*before, later[0])), *later[1:]]
    if nodes and not tests:
        raise BadTests(
            "none of them can fail: they have no assert at the top level, no function whose name begins with test, "
            "and no unittest.TestCase with such methods"
        )
    return Asserts(tuple(tests), tuple(setup))


def can_fail(nodes: Sequence[ast.AST]) -> bool:
    """Whether these call or raise anything, or assert what is no constant."""
    return any(
        isinstance(n, ast.Call | ast.Raise) or (isinstance(n, ast.Assert) and not isinstance(n.test, ast.Constant))
        for node in nodes
        for n in ast.walk(node)
    )


def check_imports(tests: Asserts) -> None:
    """Raises BadTests where tests import what is not in the sandbox, other than in a `try`."""
    for source in (*tests.setup, *tests.tests):
        nodes = [*ast.walk(parsed(source) or ast.Module([], []))]
        tried = {id(n) for node in nodes if isinstance(node, ast.Try) for part in node.body for n in ast.walk(part)}
        for node in nodes:
            if isinstance(node, _IMPORTS) and id(node) not in tried and not _is_there(node):
                raise BadTests(
                    f"they have `{ast.unparse(node):.200}`, but where they run there are Python's own modules alone, "
                    f"and the code, which they may import as {', '.join(MODULES)}"
                )


def _is_there(node: ast.Import | ast.ImportFrom) -> bool:
    names = (
        ["." * node.level + (node.module or "")] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
    )
    return all(name in MODULES or name.split(".")[0] in sys.stdlib_module_names for name in names)


def _running(source: str) -> list[ast.stmt]:
    """The statements of a source, without those for when it is run as a program."""
    if not isinstance(source, str):
        raise BadTests(f"a test is Python, as text; got {source!r:.80}")
    if (tree := parsed(source)) is None:
        raise BadTests(f"this is no Python: {source!r:.200}")
    if not tree.body:
        raise BadTests("one of them is empty")
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple) and node.test.elts:
            raise BadTests(f"this asserts a tuple, which is always true: {ast.unparse(node):.200}")
        if isinstance(node, _IMPORTS) and any(name.startswith("unittest.mock") for name in _imported(node)):
            raise BadTests("they use unittest.mock, which does not reach the code: it runs in a sandbox of its own")
    as_program = ("if __name__ ==", "unittest.main(")
    return [node for node in tree.body if not ast.unparse(node).startswith(as_program)]


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """In full."""
    return [f"{node.module}.{n.name}" if isinstance(node, ast.ImportFrom) else n.name for n in node.names]


def _defined(node: ast.stmt, called: set[str]) -> Iterator[str]:
    """The tests that a definition holds, each with its call."""
    if isinstance(node, _FUNCTIONS) and node.name.startswith("test") and node.name not in called:
        _check(node, node.name, 0)
        yield f"{ast.unparse(node)}\n{node.name}()"
    if not isinstance(node, ast.ClassDef):
        return
    bases = [ast.unparse(base) for base in node.bases]
    methods = [m for m in node.body if isinstance(m, _FUNCTIONS) and m.name.startswith("test")]
    if not methods or not (node.name.startswith("Test") or any(base.endswith("TestCase") for base in bases)):
        return
    if len(bases) != 1 or bases[0] not in _TEST_CASE:
        raise BadTests(f"class {node.name} has tests, but is not derived from unittest.TestCase, and from it alone")
    for method in methods:
        _check(method, f"{node.name}.{method.name}", 1)
        alone = copy.copy(node)
        alone.body = [m for m in node.body if m is method or m not in methods]
        yield f"{ast.unparse(alone)}\nrun_test_({node.name}({method.name!r}))"


def _check(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str, given: int) -> None:
    """Raises BadTests for a test that cannot be called with so many arguments, or cannot fail."""
    args = function.args
    wanted = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    wanted = wanted[given : len(wanted) - len(args.defaults)]
    wanted += [arg.arg for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True) if default is None]
    if wanted:
        raise BadTests(
            f"{name} has parameters ({', '.join(wanted)}), and pytest's fixtures are not supported: "
            "write a function without parameters for each case"
        )
    if isinstance(function, ast.AsyncFunctionDef):
        raise BadTests(f"{name} is asynchronous, which is not supported")
    if not can_fail(function.body):
        raise BadTests(f"{name} cannot fail: it asserts nothing and calls nothing")


def _asserts(node: ast.stmt, checks: set[str]) -> bool:
    """Whether a statement asserts, itself or by a call of one of these functions."""
    if isinstance(node, _DEFINES):
        return False
    constant = (isinstance(n.test, ast.Constant) for n in ast.walk(node) if isinstance(n, ast.Assert))
    return not all(constant) or bool(_called([node]) & checks)


def _called(nodes: Sequence[ast.stmt]) -> set[str]:
    """The names of the functions that these call."""
    calls = (n.func for node in nodes for n in ast.walk(node) if isinstance(n, ast.Call))
    return {call.id for call in calls if isinstance(call, ast.Name)}
