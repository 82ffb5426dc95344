"""Problems with an answer in a box: ours, and those of datasets shaped as GSM8K and MATH."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from seedtune.cli.main import main
from seedtune.config.run_config import RunConfig
from seedtune.errors import ConfigError, DataError
from seedtune.tasks import math_equal, math_problems
from seedtune.tasks.registry import builtin
from seedtune.training.recipe import data_and_rewards

ROOT = Path(__file__).parent.parent.parent


def correct(completion, solution):
    return math_problems.math_correct([completion], [solution]) == [1]


def test_the_problems_are_those_that_the_script_makes():
    spec = importlib.util.spec_from_file_location("math_problems_script", ROOT / "benchmarks" / "math_problems.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    assert script.FILE.read_text() == script.text()
    wrong = script.Problem(1, "{a}", "{x}", lambda r: {"a": 2}, lambda a: a + 1, lambda x, a: x == a)
    with pytest.raises(AssertionError, match="no answer"):
        wrong.rows(None, "train")


def test_a_hundred_problems_of_fifty_texts_train_and_test_apart():
    task = builtin("math")
    assert (len(task.train), len(task.test)) == (70, 30)

    def texts(rows):
        return {"".join(c for c in row["problem"] if not c.isdigit()) for row in rows}

    assert len(texts(task.train) | texts(task.test)) >= 50
    assert not texts(task.train) & texts(task.test)
    assert {row["level"] for row in task.test} == {1, 2, 3}


@pytest.mark.parametrize(
    ("completion", "solution"),
    [
        (r"\boxed{42}", "42"),
        (r"\boxed{0.5}", r"\frac{1}{2}"),
        (r"\boxed{\dfrac{1}{2}}", "1/2"),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{1000}", "1,000"),
        (r"\boxed{\$18}", "18"),
        (r"\boxed{18.}", "18"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"),
        (r"\boxed{(1, 2)}", "(1,2)"),
        (r"\boxed{\text{Friday}}", "Friday"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1"),
        ("so 40 + 2\n#### 42", "42"),
        ("#### Step 1\n40 + 2\n\n#### **42**\n", "42"),
        ("#### Step 1\n40 + 2 = \\boxed{42}\n#### Check\nit is 43", "42"),
        ("It is\n#### Friday", "Friday"),
        ("```latex\n\\boxed{42}\n```", "42"),
        (r"\boxed{1} no, \boxed{42}", "42"),
    ],
)
def test_right_answers(completion, solution):
    assert correct(completion, solution)


@pytest.mark.parametrize(
    ("completion", "solution"),
    [
        ("42", "42"),
        ("The answer is 42", "42"),
        ("### Answer\n42", "42"),
        ("**Answer:** 42", "42"),
        ("#### 42\nNo: it is 43.", "42"),
        ("#### Answer: 42", "42"),
        ("#### Friday\nor another day", "Friday"),
        ("#### 42\n\\boxed{43}", "42"),
        ("\\boxed{43}\n#### 42", "42"),
        (r"\boxed{42", "42"),
        (r"\boxed{}", "42"),
        (r"\boxed{42 or 43}", "42"),
        (r"\boxed{42, 43}", "42"),
        (r"\boxed{42} \boxed{43}", "42"),
        (r"\boxed{٤٢}", "42"),
        (r"\boxed{42.1}", "42"),
        (r"\boxed{x}", "42"),
        (r"\boxed{\text{Monday}}", "Friday"),
        (r"\boxed{9**9**9**9}", "42"),
        (r"\boxed{9^{9^{9^9}}}", "42"),
        (r"\boxed{99999999!}", "42"),
        (r"\boxed{__import__('os')}", "42"),
        (r"\boxed{42\x00}", "42"),
    ],
)
def test_wrong_answers(completion, solution):
    assert not correct(completion, solution)


@pytest.mark.parametrize(
    "text",
    [r"\frac{1}{2}", "2^{10}", "10^{100}", "x^2+4x+1000", "10!", r"\binom{10}{3}", r"\sqrt[3]{8}", "1,000,000"],
)
def test_what_is_quick_to_compute(text):
    assert math_equal.is_small(text)


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "9^{9^9}", "((99)^{999})^{999}", "1e9999", "1000!",
     "5!!", "(3!)!", "2^(3^4)", "9" * 61, "1" * 401, "2^", r"\sum_{i=1}^{9} i",
     "2^{99999}", "٣", "2^{9!}", "__x__", "(" * 9 + "1" + ")" * 9],
)  # fmt: skip
def test_what_may_take_for_ever(text):
    assert not math_equal.is_small(text)


# --- a user's dataset -----------------------------------------------------------------------------------------------

GSM8K = [
    {"question": f"What is {n} + {n}?", "answer": f"It is <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n:,}"}
    for n in (3, 800)
]
MATH = [
    {"problem": f"What is {n} halves?", "level": f"Level {n}", "solution": f"So $\\boxed{{\\frac{{{n}}}{{2}}}}$."}
    for n in (1, 3, 5)
]
HEADINGS = [{"question": "What is 2 and 2?", "answer": "#### Step 1\nAdd.\n#### 4"}]
PLAIN = [{"problem": "What is 2 + 2?", "solution": "We add.", "answer": "4", "level": 1}]


def parts(tmp_path, train, test=None, **settings):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    if test is not None:
        (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
        settings["dataset_test_split"] = str(tmp_path / "test.jsonl")
    return data_and_rewards(RunConfig(task="math", dataset_name=str(tmp_path / "train.jsonl"), **settings))


@pytest.mark.parametrize(
    ("rows", "answers"),
    [
        (GSM8K, ["6", "1,600"]),
        (MATH, [r"\frac{1}{2}", r"\frac{3}{2}", r"\frac{5}{2}"]),
        (PLAIN, ["4"]),
        (HEADINGS, ["4"]),
    ],
)
def test_datasets_of_known_shapes(tmp_path, rows, answers):
    found = parts(tmp_path, rows)
    made = found["train_dataset"]
    assert [row["solution"] for row in made] == answers
    assert made[0]["prompt"][0]["content"].startswith(f"What is {rows[0].get('question', rows[0].get('problem'))[8:]}")
    assert "\\boxed{answer}" in made[0]["prompt"][0]["content"]
    for row in made:
        assert correct(f"\\boxed{{{row['solution']}}}", row["solution"])
    assert found["reward_funcs"] == [math_problems.math_correct]


def test_levels_choose_and_style_words(tmp_path):
    found = parts(tmp_path, MATH, task_args={"levels": [3, 5], "style": "few_shot", "examples": 2})["train_dataset"]
    assert [row["level"] for row in found] == [3, 5]
    assert found[0]["prompt"].count("Question: ") == 3
    with pytest.raises(DataError, match=r"levels \[2\]"):
        parts(tmp_path, MATH, task_args={"levels": [2]})


def test_rows_to_test_on_are_not_trained_on(tmp_path, caplog):
    found = parts(tmp_path, MATH, MATH[1:2])
    assert [row["level"] for row in found["train_dataset"]] == [1, 5]
    assert "1 of 3 training rows left out" in caplog.text
    with pytest.raises(DataError, match="all rows of the training split"):
        parts(tmp_path, MATH, MATH)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a", "answer": "1"}, "'question' .as GSM8K. or 'problem'.*has: text, answer"),
        ({"question": "a"}, "row 1 has no answer"),
        ({"question": "a", "answer": ""}, "row 1 has no answer"),
        ({"problem": "a", "solution": "It is 4."}, "row 1 has no answer"),
        ({"problem": "a", "solution": "#### Step 1\nIt is 4."}, "row 1 has no answer"),
    ],
)
def test_rows_that_lack_something(tmp_path, row, says):
    with pytest.raises(DataError, match=says):
        parts(tmp_path, [row])


@pytest.mark.parametrize("levels", [[], "3", 3, ["a"]])
def test_levels_that_are_none(levels):
    with pytest.raises(ConfigError, match="levels is a list"):
        builtin("math").with_args({"levels": levels})


def test_pass_at_1_and_at_k(tiny_folder, tmp_path):
    command = f"eval {tiny_folder} --task math --samples 4 --k 1 4 --max_eval_samples 2 --max_completion_length 8"
    assert main([*command.split(), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["model"]
    assert {"pass@1", "pass@4", "math_correct", "boxed"} <= set(json.dumps(found).replace('"', " ").split())
