"""Tests as datasets have them: asserts in a list or a text; HumanEval's, MBPP's, APPS' and LiveCodeBench's columns."""

from __future__ import annotations

import ast
import json
import keyword
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from .sources import can_fail, check_imports, split
from .verdict import Asserts, BadTests, Pairs, Tests, parsed

Columns = Mapping[str, Any]


def known(columns: Collection[str]) -> bool:
    """Whether a dataset with these columns has tests."""
    return any(set(needed) <= set(columns) for needed in _READERS)


def needed() -> str:
    """What columns there may be, in words."""
    return "; ".join(" and ".join(names) for names in _READERS)


def tests_of(row: Columns, code: str) -> Tests:
    """The tests of a row, for this code. Raises BadTests."""
    for names, read in _READERS.items():
        if all(row.get(name) is not None for name in names):
            return _counted(read(row, code))
    raise BadTests(f"the row has none; they are in columns {needed()}")


def completed(code: str, prompt: str, row: Columns, completion: str) -> str:
    """The program of a completion: where the prompt is the beginning of it (HumanEval), both; and with what the prompt
    imports.
    """
    name = row.get("entry_point")
    if not isinstance(name, str):
        return code
    if _defines(code, name):
        imports = [line for line in prompt.splitlines() if line.startswith(("import ", "from ")) and parsed(line)]
        return "\n".join([*imports, code])
    return prompt + completion if _defines(prompt + completion, name) else code


def _defines(code: str, name: str) -> bool:
    tree = parsed(code)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return tree is not None and any(isinstance(n, kinds) and n.name == name for n in tree.body)


def _own(row: Columns, code: str, column: str = "tests") -> Tests:
    tests = row[column]
    if isinstance(tests, str):
        return split(tests)
    items = _list(tests, column)
    if items and all(isinstance(item, Mapping) for item in items):
        return _pairs([item.get("input", "") for item in items], [item.get("output") for item in items])
    return split(items)


def _mbpp(row: Columns, code: str) -> Tests:
    setup = [*_list(row.get("test_imports") or [], "test_imports"), row.get("test_setup_code") or ""]
    tests = split(_list(row["test_list"], "test_list"))
    return Asserts(tests.tests, (*(source for source in setup if source and _python(source)), *tests.setup))


def _human_eval(row: Columns, code: str) -> Tests:
    """Their tests are a function `check(candidate)`; BigCodeBench's, in columns of the same names, are a TestCase."""
    if not _python(row["test"]) or not _is_name(row["entry_point"]):
        raise BadTests(
            "test is Python with a function check or a unittest.TestCase, entry_point the name of a function"
        )
    if not _defines(row["test"], "check"):
        return split(row["test"])
    if not can_fail([ast.parse(row["test"])]):
        raise BadTests("check cannot fail: it asserts nothing and calls nothing")
    return Asserts((f"check({row['entry_point']})",), (row["test"],))


def _apps(row: Columns, code: str) -> Tests:
    told = _json(row["input_output"], "input_output")
    if not isinstance(told, Mapping) or not {"inputs", "outputs"} <= set(told):
        raise BadTests("input_output has inputs and outputs")
    if (name := told.get("fn_name")) is not None:
        return _calls(code, name, told["inputs"], told["outputs"])
    return _pairs(told["inputs"], told["outputs"])


def _live_code_bench(row: Columns, code: str) -> Tests:
    items = _list(_json(row["public_test_cases"], "public_test_cases"), "public_test_cases")
    if not all(isinstance(item, Mapping) and {"input", "output"} <= set(item) for item in items):
        raise BadTests("public_test_cases is a list of objects with input and output")
    if any(item.get("testtype") == "functional" for item in items):
        metadata = _json(row.get("metadata") or "{}", "metadata")
        inputs = [[_json(line, "input") for line in item["input"].splitlines()] for item in items]
        name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
        return _calls(code, name, inputs, [_json(item["output"], "output") for item in items])
    return _pairs([item["input"] for item in items], [item["output"] for item in items])


def _inputs(row: Columns, code: str) -> Tests:
    return _pairs(_list(row["inputs"], "inputs"), _list(row["outputs"], "outputs"))


#: By the columns that a dataset has: the first of these that it has holds its tests.
_READERS: dict[tuple[str, ...], Callable[[Columns, str], Tests]] = {
    ("tests",): _own,
    ("test_list",): _mbpp,
    ("test", "entry_point"): _human_eval,
    ("input_output",): _apps,
    ("public_test_cases",): _live_code_bench,
    ("inputs", "outputs"): _inputs,
    ("test",): partial(_own, column="test"),
}


def _pairs(inputs: Sequence[Any], outputs: Sequence[Any]) -> Pairs:
    if len(inputs) != len(outputs):
        raise BadTests(f"there are {len(inputs)} inputs and {len(outputs)} outputs")

    def text(value: Any) -> str:
        lines = value if isinstance(value, list | tuple) else [value]  # APPS has either
        if not all(isinstance(line, str) for line in lines):
            raise BadTests(f"inputs and outputs are texts; got {value!r:.80}")
        return "\n".join(lines)

    return Pairs(tuple((text(i), text(o)) for i, o in zip(inputs, outputs, strict=True)))


def _calls(code: str, name: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Asserts:
    """Calls of one function, or of that method of a class `Solution`. A result in a list counts, too: APPS has both."""
    if not _is_name(name) or len(inputs) != len(outputs) or not all(isinstance(i, list) for i in inputs):
        raise BadTests("tests by calls need the name of a function, and a list of arguments for each output")
    function = f"Solution().{name}" if not _defines(code, name) and _defines(code, "Solution") else name
    return Asserts(
        tuple(
            f"got_ = plain_({function}(*{arguments!r}))\nassert got_ == {expected!r} or [got_] == {expected!r}"
            for arguments, expected in zip(inputs, outputs, strict=True)
        )
    )


def _counted(tests: Tests) -> Tests:
    if not (tests.tests if isinstance(tests, Asserts) else tests.pairs):
        raise BadTests("there are none")
    if isinstance(tests, Asserts):
        check_imports(tests)
    return tests


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)


def _python(source: Any) -> bool:
    if not isinstance(source, str) or parsed(source) is None:
        raise BadTests(f"this is no Python: {source!r:.200}")
    return True


def _list(value: Any, name: str) -> list[Any]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadTests(f"{name} is a list; got {value!r:.80}")
    return list(value)


def _json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadTests(f"{name} is no JSON: {value!r:.80}") from None
