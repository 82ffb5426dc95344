"""Code with unit tests: what is right passes, what cheats does not, and tests that do not run are told apart."""

from __future__ import annotations

import json
from functools import partial

import pytest

from sandboxes import needs_bubblewrap
from seedtune import ESConfig, ESTrainer
from seedtune.data.prompts import Prompts
from seedtune.errors import ConfigError, DataError, RewardError
from seedtune.rewards.function import reward_functions
from seedtune.sandbox import Limits
from seedtune.tasks.code import columns as test_columns
from seedtune.tasks.code import problems, unit_tests
from seedtune.tasks.code.columns import completed
from seedtune.tasks.code.dialogue import MODULES
from seedtune.tasks.code.sources import split
from seedtune.tasks.code.verdict import Asserts, BadTests, Pairs, check, code_of, returned
from seedtune.tasks.registry import builtin

SQUARE = split(["assert f(2) == 4", "assert f(3) == 9", "assert f(-1) == 1"])
DOUBLE = Pairs((("2\n", "4\n"), ("5\n", "10")))


def passed(code, tests=SQUARE, seconds=5.0):
    verdict = check(code, tests, Limits(seconds=seconds))
    assert not verdict.broken, verdict
    return verdict.passed


def score(**columns):
    """Of one completion."""
    text = columns.pop("completion")
    args = {name: columns.pop(name) for name in ("partial", "prompts", "seconds") if name in columns}
    return unit_tests.unit_tests(completions=[text], **args, **{k: [v] for k, v in columns.items()})[0]


# --- code of a completion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```\nx = 1\n```\nb\n```py\nx = 2\n```\nc", "x = 2\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("```python\nx = 1\n```\nand\n```", ""),
        ("x = 1", "x = 1"),
        ("use `x`\n", "use `x`\n"),
        ("  ```python\nx = 1\n  ```", "x = 1\n"),
        ("", ""),
    ],
)
def test_code_is_the_last_fenced_block(text, code):
    assert code_of(text) == code


# --- the verdict ------------------------------------------------------------------------------------------------------


@needs_bubblewrap
def test_right_wrong_and_half_right():
    assert passed("def f(x): return x * x") == 3
    assert passed("f = lambda x: x ** 2") == 3
    assert passed("def f(x): return x + 2") == 2 - 1 + 1  # 4, 5, 1
    assert passed("def f(x): return 0") == 0
    assert passed("def f(x):\n    if x < 0: raise ValueError\n    return x * x") == 2


@needs_bubblewrap
@pytest.mark.parametrize(
    "cheat",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def f(x):\n    import os\n    os._exit(0)",
        "def f(x): raise SystemExit(0)",
        "def f(x): raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit, os\natexit.register(os._exit, 0)",
        "print('passed'); print('{\"test\": 0, \"passed\": true}')\ndef f(x): return 0",
        'import os\nfor n in range(3, 20):\n    try: os.write(n, b\'{"test": 0, "passed": true}\\n\' * 3)\n'
        "    except OSError: pass\ndef f(x): return 0",
        "import os\nfor n in range(20):\n    try: os.close(n)\n    except OSError: pass\ndef f(x): return 0",
        "class Any:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "def f(x): return Any()",
        "class Int(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def f(x): return Int(7)",
        "class Any:\n    def __contains__(self, x): return True\n    def __len__(self): return 4\n"
        "def f(x): return Any()",
        "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.isinstance = lambda *a: True\n"
        "def f(x): return 0",
        "import builtins\nbuiltins.compile = builtins.exec = lambda *a: None\ndef f(x): return 0",
        "import json\njson.loads = lambda *a: {'do': 'names', 'names': []}\ndef f(x): return 0",
        "import unittest, sys\nunittest.TestCase.assertEqual = lambda *a: None\nsys.modules['tests'] = None\n"
        "def f(x): return 0",
        "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'passed' in o: o['passed'] = 3\n"
        "def f(x): return 0",
        "import sys\nsys._getframe(1).f_globals['encode'] = lambda *a: True\ndef f(x): return 0",
        "f = None",
        "def f(x): return NotImplemented",
        "def f(x): return [4, 9, 1]",
        "def f(x): return '4'",
        "def f(x): yield 4",
        "def f(",
        "\0",
        "",
    ],
)
def test_no_way_to_pass_without_an_answer(cheat):
    assert passed(cheat) == 0


@needs_bubblewrap
@pytest.mark.parametrize("rest", ["sys.exit(0)", "os._exit(0)", "while True: pass"])
def test_what_ends_early_keeps_what_it_has_passed(rest):
    code = f"import os, sys\ndef f(x):\n    if x == 2: return 4\n    {rest}"
    verdict = check(code, SQUARE, Limits(seconds=1))
    assert verdict.passed == 1
    assert verdict.failure


@needs_bubblewrap
def test_why_it_failed_is_told():
    assert check("def f(x): return x", SQUARE).failure == "AssertionError: "
    assert "division" in check("def f(x): return 1 / 0", SQUARE).failure
    assert "out of time" in check("while True: pass", SQUARE, Limits(seconds=1)).failure
    assert "never closed" in check("def f(", SQUARE).failure
    assert "'f' is not defined" in check("def g(x): pass", SQUARE).failure


@needs_bubblewrap
def test_values_that_cross():
    values = [
        None, True, -(10**40), 1.5, float("inf"), "ä\ud800", b"\x00", 1j, [1, (2, {3})], {"a": {1: frozenset({2})}},
    ]  # fmt: skip
    tests = split([f"assert f({value!r}) == {value!r}" if value != float("inf") else "assert f(1e999) == 1e999"
                   for value in values])  # fmt: skip
    assert passed("def f(x): return x", tests) == len(values)
    assert passed("def f(x): return str(x)", tests) == 1
    assert check("def f(x): return x", split(["import math\nassert math.isnan(f(float('nan')))"])).all


@needs_bubblewrap
def test_classes_generators_and_exceptions():
    code = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); return self
    def __len__(self): return len(self.items)
    def __str__(self): return "stack"
def count(n):
    for k in range(n): yield k
def fail(): raise ValueError("no")
LIMIT = 3
"""
    tests = split(
        """
import math
def raises(kind):
    try: fail()
    except kind: return True
s = Stack()
s.push(1).push(2)
assert s.items == [1, 2]
assert len(s) == 2 and str(s) == "stack"
assert list(count(3)) == [0, 1, 2]
assert raises(ValueError)
assert LIMIT == math.sqrt(9)
def test_push(): assert Stack().push(5).items == [5]
"""
    )
    assert len(tests.tests) == 6
    assert passed(code, tests) == 6
    assert passed(code.replace("self.items = []", "pass"), tests) == 3


def test_a_text_is_split_in_its_order():
    assert split("x = f(1)\nassert x\nx += 1\nassert x == 2\ny = 1").tests == (
        "x = f(1)\nassert x", "x += 1\nassert x == 2"
    )  # fmt: skip


# --- functions and classes with tests ---------------------------------------------------------------------------------

CASE = """
import unittest
class TestF(unittest.TestCase):
    @classmethod
    def setUpClass(cls): cls.two = 2
    def setUp(self): self.made = [self.two]
    def tearDown(self): log.append(self.made.pop())
    def test_two(self): self.assertEqual(f(self.made[0]), 4)
    def test_raises(self):
        with self.assertRaises(TypeError):
            f("x")
    def test_many(self):
        for n in range(3):
            with self.subTest(n=n):
                self.assertEqual(f(n), n * n)
log = []
class TestTornDown(unittest.TestCase):
    def test_it(self): self.assertEqual((log, f(1)), ([2, 2, 2], 1))
if __name__ == "__main__":
    unittest.main()
"""


@needs_bubblewrap
@pytest.mark.parametrize(
    "tests",
    [
        ["def test_two():\n    assert f(2) == 4", "def test_three():\n    assert f(3) == 9"],
        ["def test_two():\n    assert f(2) == 4", "def test_three():\n    assert f(3) == 9", "test_three()"],
        ["def test_two():\n    assert f(2) == 4\ndef test_three(n=3):\n    assert f(n) == 9"],
        "def test_two():\n    holds(2)\ndef test_three():\n    holds(3)\ndef holds(n):\n    assert f(n) == n * n",
        "def test(n):\n    assert f(n) == n * n\ntest(2)\ntest(3)",
        "def holds(n):\n    assert f(n) == n * n\nassert f(2) == 4\nholds(3)",
        "assert f(2) == 4\nfor n in range(3, 5):\n    assert f(n) == n * n",
    ],
)
def test_functions_are_called(tests):
    tests = split(tests)
    assert len(tests.tests) == 2
    assert passed("def f(x): return x * x", tests) == 2
    assert passed("def f(x): return 2 * x", tests) == 1
    assert passed("def f(x): return 0", tests) == 0


@needs_bubblewrap
@pytest.mark.parametrize("columns", [{"tests": CASE}, {"tests": [CASE]}, {"test": CASE, "entry_point": "f"}])
def test_methods_of_a_test_case_are_run(columns):
    tests = test_columns.tests_of(columns, "")
    assert len(tests.tests) == 4
    assert passed("def f(x): return x ** 2", tests) == 4
    assert passed("def f(x): return 4 if x == 2 else int(x)", tests) == 3  # int('x') is no TypeError
    assert passed("def f(x): return 2 * x", tests) == 2 - 1  # 4, and 'xx' is none, 2, 2
    assert passed("def f(x): raise TypeError", tests) == 1
    assert passed("class Any:\n    def __eq__(self, o): return True\ndef f(x): return Any()", tests) == 0
    assert passed("import unittest\nunittest.TestCase.assertEqual = lambda *a: 0\ndef f(x): return 0", tests) == 0
    assert passed("def f(x): raise SystemExit(0)", tests) == 0


@needs_bubblewrap
@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ("import unittest, numpy\nclass T(unittest.TestCase):\n    def test_f(self): assert f(1)", "named 'numpy'"),
        (["import numpy", "assert f(1) == numpy.ones(1)"], "named 'numpy'"),
        (
            "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('why')\n    def test_f(self): f(1)",
            "skipped: why",
        ),
        (
            "import unittest\nclass T(unittest.TestCase):\n    @unittest.expectedFailure\n    def test_f(self): f()",
            "expected to fail",
        ),
    ],
)
def test_those_that_cannot_run_are_told_apart(tests, why):
    assert why in check("def f(x): return x", split(tests)).broken


@needs_bubblewrap
def test_the_code_is_a_module_that_tests_import():
    """By names that public datasets use; what they set there is set in the code."""
    tests = split(
        """
from solution import f, Counter
import solution as code
def test_function(): assert f(2) == 4
def test_later():
    from solution import f as square
    assert square(3) == code.f(-3) == 9
def test_attributes():
    counter = Counter()
    counter.count = 5
    assert counter.more() == 6 and counter.count == 5
def test_a_constant():
    code.LIMIT = 7
    assert code.limit() == 7
"""
    )
    code = """
LIMIT = 3
class Counter:
    def more(self): return self.count + 1
def limit(): return LIMIT
def f(x): return x ** 2
"""
    assert passed(code, tests) == 4
    assert passed(code.replace("x ** 2", "2 * x"), tests) == 3
    assert passed(code.replace("f(x)", "g(x)"), tests) == 2
    assert passed("def __getattr__(name): return lambda *a: True\nclass Counter: pass", tests) == 0
    assert passed(code, split([f"from {name} import *\nassert f(2) == 4" for name in MODULES])) == 4


@needs_bubblewrap
def test_what_the_code_lacks_is_its_own_fault():
    verdict = check("def g(x): return x", split("import solution\nfrom solution import f\nassert f(1)"))
    assert "cannot import name 'f'" in verdict.failure


@needs_bubblewrap
def test_tests_may_try_to_import():
    tests = "try:\n    import numpy\nexcept ImportError:\n    numpy = None\nassert f(2) == 4"
    tests = test_columns.tests_of({"tests": tests}, "")
    assert check("def f(x): return x * x", tests).all


def test_what_only_sets_up_gets_no_credit():
    items = ["import math", "two = 2", "def g(x): return x", "assert f(two) == 4", "'a text'"]
    assert split(items) == Asserts(("two = 2\ndef g(x): return x\nassert f(two) == 4",), ("import math",))


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        (["import math"], "none of them can fail"),
        (["def g(): assert f(1)", "x = 1"], "none of them can fail"),
        (["assert True"], "none of them can fail"),
        ("assert True", "none of them can fail"),
        (["if __name__ == '__main__':\n    assert f(1)", "import math"], "none of them can fail"),
        ("def test_f(): pass", "test_f cannot fail"),
        (["def test_f():\n    assert True"], "test_f cannot fail"),
        (["assert (f(1) == 1, 'one')"], "asserts a tuple"),
        ("def test_f(tmp_path): assert f(1)", r"test_f has parameters \(tmp_path\), and pytest's fixtures"),
        (["def test_f(*, n): assert f(1)"], r"test_f has parameters \(n\)"),
        ("async def test_f(): assert f(1)", "test_f is asynchronous"),
        ("class TestF:\n    def test_f(self): assert f(1)", "class TestF has tests, but is not derived from"),
        ("class A(TestCase): pass\nclass TestF(A):\n    def test_f(self): assert f(1)", "class TestF has tests, but"),
        ("class TestF(TestCase):\n    def test_f(self): pass", "TestF.test_f cannot fail"),
        ("class TestF(TestCase):\n    def test_f(self, n): f(1)", r"TestF.test_f has parameters \(n\)"),
        ("from unittest.mock import patch\nassert f(1)", "unittest.mock, which does not reach the code"),
        ("from unittest import TestCase, mock\nassert f(1)", "unittest.mock, which does not reach the code"),
        ("import unittest.mock as m\nassert f(1)", "unittest.mock, which does not reach the code"),
        ("import os, numpy as np\nassert f(1)", "`import os, numpy as np`, but where they run"),
        (
            ["import math", "def test_f():\n    from pandas.testing import x\n    x(f(1))"],
            "`from pandas.testing import x`",
        ),
        ("from .solution import f\nassert f(1)", "`from .solution import f`, but where they run"),
        ("import solution.parts\nassert f(1)", "may import as solution, main, candidate, your_module"),
    ],
)
def test_tests_that_would_be_skipped_or_cannot_fail_are_refused(tests, why):
    with pytest.raises(BadTests, match=why):
        test_columns.tests_of({"tests": tests}, "")
    with pytest.raises(DataError, match=f"1 of 1 rows cannot be read. Row 1: .*{why}"):
        unit_tests.adapt([{"prompt": "a", "tests": tests}])


@needs_bubblewrap
def test_arguments_are_copies():
    assert passed("def f(x):\n    x.clear()\n    return []", split(["x = [3, 1]\nassert f(x) == sorted(x)"])) == 0


@needs_bubblewrap
def test_programs_that_read_and_print():
    assert passed("print(2 * int(input()))", DOUBLE) == 2
    assert passed("import sys\nfor line in sys.stdin: print(2 * int(line), '\\n\\n')", DOUBLE) == 2
    assert passed("print(4)", DOUBLE) == 1
    assert passed("print(2 * int(input()))\nexit(1)", DOUBLE) == 0
    assert passed("", DOUBLE) == 0
    assert passed("while True: print(4)", DOUBLE) == 0


@needs_bubblewrap
def test_what_a_function_returns():
    assert returned("def f(a, b): return (a, b)", "f", [[1, [2]], ["x", None]]) == [(1, [2]), ("x", None)]
    assert returned("def f(a): return 1 / a", "f", [[0], [1]]) == [None, 1.0]
    assert returned("print('[0, 5]')\ndef f(a): return object()", "f", [[0]]) == [None]
    assert returned("def g(", "f", [[0]]) == [None]


# --- tests that do not run --------------------------------------------------------------------------------------------


@needs_bubblewrap
@pytest.mark.parametrize(
    ("tests", "why"),
    [
        (Asserts(("assert f(1) == 1",), ("import numpy",)), "No module named 'numpy'"),
        (Asserts(("assert f(1) == 1", "open('data.txt')")), "FileNotFoundError"),
        (Asserts(("assert f(1) == 1",), ("1 / 0",)), "ZeroDivisionError"),
        (Asserts(("raise SystemExit",)), "SystemExit"),
        (Asserts(("assert f(lambda x: x)",)), "only plain values can be given"),
    ],
)
def test_tests_that_fail_by_themselves_are_not_the_codes_fault(tests, why):
    verdict = check("def f(x): return x", tests)
    assert why in verdict.broken
    assert verdict.passed == 0


@needs_bubblewrap
def test_they_are_left_out_and_logged():
    logged = {}
    scores = unit_tests.unit_tests(
        completions=["def f(x): return x"] * 3,
        tests=[["assert f(1) == 1"], ["assert f(1 == 1"], ["assert f(1) == 2"]],
        log_metric=lambda name, value: logged.setdefault(name, []).append(value),
        log_extra=lambda name, values: logged.update({name: values}),
    )
    assert scores == [1.0, None, 0.0]
    assert logged["broken_tests"] == [0, 1, 0]
    assert logged["test_failure"][1].startswith("tests that do not run: this is no Python")
    with pytest.raises(DataError, match="whatever the code: this is no Python"):
        score(completion="x", tests=["assert ("])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "the row has none"),
        ({"tests": []}, "there are none"),
        ({"tests": "x = 1"}, "none of them can fail"),
        ({"tests": "assert ("}, "no Python"),
        ({"tests": [1]}, "as text; got 1"),
        ({"tests": ["# nothing"]}, "one of them is empty"),
        ({"tests": 5}, "tests is a list"),
        ({"tests": [{"input": "1", "output": 1}]}, "inputs and outputs are texts"),
        ({"test": "def check(c): pass", "entry_point": "a b"}, "the name of a function"),
        ({"test": "def check(c): pass", "entry_point": "f"}, "check cannot fail"),
        ({"test": "def probe(c): assert c(1)", "entry_point": "f"}, "none of them can fail"),
        ({"input_output": "{"}, "no JSON"),
        ({"input_output": "[]"}, "has inputs and outputs"),
        ({"input_output": '{"inputs": ["1"], "outputs": []}'}, "1 inputs and 0 outputs"),
        ({"input_output": '{"fn_name": "import", "inputs": [[1]], "outputs": [1]}'}, "name of a function"),
        ({"public_test_cases": '[{"input": "1"}]'}, "with input and output"),
        ({"inputs": "12", "outputs": ["1"]}, "inputs is a list"),
    ],
)
def test_columns_that_are_no_tests(row, why):
    with pytest.raises(BadTests, match=why):
        test_columns.tests_of(row, "")


# --- datasets as they are ---------------------------------------------------------------------------------------------


@needs_bubblewrap
@pytest.mark.parametrize(
    ("columns", "right", "wrong"),
    [
        ({"tests": ["assert f(2) == 4"]}, "def f(x): return 2 * x", "def f(x): return x"),
        ({"tests": "import math\nassert f(4) == math.sqrt(64)"}, "def f(x): return 2 * x", "def f(x): return x"),
        ({"tests": [{"input": "3", "output": "6"}]}, "print(2 * int(input()))", "print(input())"),
        (
            {"test_list": ["assert f(2) == two + two"], "test_setup_code": "two = 2", "test_imports": ["import os"]},
            "def f(x): return x + x", "def f(x): return x",
        ),
        (
            {"test_list": ["import math", "assert f(4) == math.sqrt(64)"], "test_setup_code": ""},
            "def f(x): return 2 * x", "def f(x): return x",
        ),
        (
            {"test": "def check(candidate):\n    for n in range(5):\n        assert candidate(n) == n * n",
             "entry_point": "f"},
            "def f(x): return x * x", "def f(x): return x",
        ),
        ({"input_output": json.dumps({"inputs": ["1\n2"], "outputs": ["3\n"]})},
         "print(int(input()) + int(input()))", "print(1)"),
        ({"input_output": {"inputs": [["1", "2"]], "outputs": [["3"]]}},
         "print(int(input()) + int(input()))", "print(1)"),
        ({"input_output": json.dumps({"fn_name": "f", "inputs": [[[1], 2]], "outputs": [[[1, 2]]]})},
         "def f(x, y): return (*x, y)", "def f(x, y): return x"),
        ({"input_output": json.dumps({"fn_name": "f", "inputs": [[3]], "outputs": [4]})},
         "class Solution:\n    def f(self, x): return x + 1", "class Solution:\n    def f(self, x): return x"),
        ({"public_test_cases": json.dumps([{"input": "3\n", "output": "4\n", "testtype": "stdin"}])},
         "print(int(input()) + 1)", "print(3)"),
        ({"public_test_cases": json.dumps([{"input": "3\n[1]", "output": "[1, 3]", "testtype": "functional"}]),
          "metadata": '{"func_name": "f"}'},
         "class Solution:\n    def f(self, x, y): return [*y, x]", "class Solution:\n    def f(self, x, y): return y"),
        ({"inputs": ["3"], "outputs": ["4"]}, "print(int(input()) + 1)", "print(3)"),
        ({"test": "from solution import f\n\ndef test_f():\n    assert f(3) == 4"}, "def f(x): return x + 1", "x = 1"),
    ],
)  # fmt: skip
def test_datasets_as_they_are(columns, right, wrong):
    assert score(completion=f"So:\n```python\n{right}\n```", **columns) == 1
    assert score(completion=wrong, **columns) == 0
    assert unit_tests.adapt([{"prompt": "Do it.", **columns}])[0]["prompt"][0]["content"].startswith("Do it.")


@needs_bubblewrap
def test_a_prompt_that_is_the_beginning_of_the_code():
    prompt = 'from math import sqrt\n\ndef f(x):\n    """The root."""\n'
    row = {"test": "def check(candidate): assert candidate(9) == 3", "entry_point": "f"}
    for completion in (
        "    return sqrt(x)\n",
        "```python\ndef f(x): return sqrt(x)\n```",
        f"{prompt}    return sqrt(x)",
    ):
        assert score(completion=completion, prompts=[prompt], **row) == 1, completion
    assert completed("nonsense (", prompt, row, "nonsense (") == "nonsense ("


@needs_bubblewrap
def test_partial_credit():
    columns = {"tests": ["assert f(1) == 1", "assert f(2) == 4", "assert f(3) == 9", "assert f(0) == 0"]}
    assert score(completion="def f(x): return x", **columns) == 0
    assert score(completion="def f(x): return x", partial=True, **columns) == 0.5
    assert score(completion="x", partial=True, **columns) == 0


def test_rows_whose_tests_cannot_be_read_are_left_out(caplog):
    rows = [{"prompt": "a", "tests": ["assert f(1)"]}, {"prompt": "b", "tests": []}]
    assert len(unit_tests.adapt(rows)) == 1
    assert "1 of 2 rows cannot be read. Row 2: there are none" in caplog.text
    with pytest.raises(DataError, match="1 of 1 rows cannot be read"):
        unit_tests.adapt(rows[1:])


# --- as a reward function ---------------------------------------------------------------------------------------------


@needs_bubblewrap
def test_the_reward_function_is_found_and_checked():
    (reward,) = reward_functions("unit_tests", {"unit_tests": {"partial": True, "seconds": 2.0}})
    reward.check_columns(["prompt", "tests"])
    assert reward.function(completions=["def f(x): return 1"], tests=[["assert f(1) == 1"]]) == [1.0]
    with pytest.raises(RewardError, match=r"in columns tests; test_list; .* its columns are: prompt, solution"):
        reward.check_columns(["prompt", "solution"])
    for arguments in ({"partial": 1}, {"seconds": 0}, {"megabytes": 1}, {"megabytes": 2.5}):
        with pytest.raises(ConfigError):
            reward_functions("unit_tests", {"unit_tests": arguments})[0].check_columns(["tests"])
    with pytest.raises(ConfigError, match="no argument 'share'; it takes partial, seconds, megabytes"):
        reward_functions("unit_tests", {"unit_tests": {"share": True}})


NO_TEST = {"prompt": "a", "tests": "x = f(1)"}


@needs_bubblewrap
@pytest.mark.parametrize(
    ("rows", "evaluation", "says"),
    [
        (
            [NO_TEST, {"prompt": "b", "tests": None}],
            None,
            "train_dataset: the tests of 2 of 2 rows cannot be read. Row 1",
        ),
        ([{**NO_TEST, "tests": []}], None, "Row 1: there are none. No completion would get a reward"),
        ([{**NO_TEST, "tests": "assert f(1)"}], [NO_TEST], "eval_dataset: the tests of 1 of 1 rows cannot be read"),
    ],
)
def test_a_dataset_without_tests_is_refused_before_a_run(tmp_path, rows, evaluation, says):
    args = ESConfig(output_dir=str(tmp_path / "run"), learning_rate=0.1, reward_workers=0)
    with pytest.raises(DataError, match=says):
        ESTrainer("no/model", "unit_tests", args, rows, evaluation)
    with pytest.raises(DataError, match=says):
        ESTrainer("no/model", partial(unit_tests.unit_tests, partial=True), args, rows, evaluation)


@needs_bubblewrap
def test_rows_without_tests_are_counted_before_a_run(caplog):
    rows = [{"prompt": "a", "tests": "assert f(1)"}, NO_TEST, {**NO_TEST, "tests": "import numpy\nassert f(1)"}]
    Prompts(rows, None, None).check_columns(reward_functions("unit_tests"), [])
    (said,) = [r.getMessage() for r in caplog.records]
    assert "train_dataset: the tests of 2 of 3 rows cannot be read. Row 2: none of them can fail" in said
    assert "Completions for such rows get no reward" in said


def test_without_a_sandbox_a_run_does_not_begin(monkeypatch, tmp_path):
    from seedtune import sandbox
    from seedtune.errors import SandboxError

    sandbox.check.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("unit_tests", "checker_passes", "arc_solved"):
        with pytest.raises(SandboxError, match="apt install bubblewrap"):
            reward_functions(name)[0].check_columns(["prompt", "tests", "checker", "test_inputs", "test_outputs"])
    sandbox.check.cache_clear()


@needs_bubblewrap
def test_it_works_in_scoring_processes():
    from seedtune.rewards.call import Batch
    from seedtune.rewards.scorer import Scorer

    completions = ["def f(x): return x", "while True: pass", "def f(x): return 0"]
    batch = Batch([""] * 3, completions, [[]] * 3, {"tests": [["assert f(1) == 1"]] * 3})
    rewards = reward_functions("unit_tests", {"unit_tests": {"seconds": 1.0}})
    with Scorer(rewards, workers=1, timeout=60) as scorer:
        assert scorer.gather([scorer.submit(batch)])[0][0].rewards == [1, 0, 0]


# --- the problems -----------------------------------------------------------------------------------------------------


def test_problems_are_the_same_for_a_seed_and_disjoint():
    made = problems.problems(300, [1, 2, 3], 0, False)
    assert made == problems.problems(300, [1, 2, 3], 0, False)
    assert made != problems.problems(300, [1, 2, 3], 1, False)
    held_out = problems.problems(50, [1, 2, 3], 0, True)
    assert not {p.words for p in made} & {p.words for p in held_out}
    assert {p.steps for p in made} == {1, 2, 3}


@pytest.mark.parametrize(
    ("task_args", "says"),
    [
        ({"steps": 2}, "a list of whole numbers from 1 to 15"),
        ({"steps": [0]}, "a list of whole numbers"),
        ({"problems": 0}, "problems is a whole number of at least 1"),
        ({"problems": 10**4, "steps": [1]}, "there are only"),
        ({"seed": -1}, "seed is a whole number of at least 0"),
        ({"partial": "yes"}, "partial is true or false"),
        ({"seconds": -1}, "seconds is a number above 0"),
        ({"level": 1}, "has no 'level'"),
    ],
)
def test_task_args_that_cannot_be_are_refused(task_args, says):
    with pytest.raises(ConfigError, match=says):
        _ = builtin("code").with_args(task_args).train
