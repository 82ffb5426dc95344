"""Tasks: reference completions score full marks, hacks score none; data is read, or refused clearly."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.data import dataset
from seedtune.errors import ConfigError, DataError
from seedtune.tasks import conciseness, countdown, countdown_ladder, one_liner
from seedtune.tasks.registry import TASKS, builtin


def score(function, row, text):
    columns = {k: [v] for k, v in row.items() if k != "prompt"}
    return function(prompts=[row["prompt"]], completions=[text], completion_ids=[[]], **columns)[0]


#: Tasks that need no `task_args` to have rows.
COMPLETE = [name for name, task in TASKS.items() if not task.required_args]


def runs_code(task):
    return any(getattr(reward, "runs_code", False) for reward in task.rewards)


@pytest.mark.parametrize("name", COMPLETE)
def test_the_reference_scores_full_marks_and_hacks_score_none(name):
    task = builtin(name)
    few = 20
    if runs_code(task):
        few = 2
        if shutil.which("bwrap") is None:
            pytest.skip("bubblewrap is not installed")
    for row in [*task.train[:few], *task.test[:few]]:
        for reward in task.rewards:
            assert score(reward, row, task.reference(row)) == pytest.approx(task.full_marks)
        for metric in task.gold_metrics:
            assert score(metric, row, task.reference(row)) == 1
        for n, hack in enumerate(task.hacks):
            text = hack(row)
            assert min(score(t, row, text) for t in task.gold_metrics) == 0, (n, text)
            if name == "countdown":
                assert score(task.rewards[0], row, text) <= 0.1, (n, text)


@pytest.mark.parametrize("name", COMPLETE)
def test_train_and_test_are_disjoint(name):
    task = builtin(name)
    assert not {json.dumps(r["prompt"]) for r in task.train} & {json.dumps(r["prompt"]) for r in task.test}


@pytest.mark.parametrize("name", ["keywords", "one_liner", "summary"])
def test_tasks_made_to_be_hacked_can_be_hacked(name):
    """Some answer that is no good earns the whole reward: otherwise there is nothing to measure."""
    task = builtin(name)
    for row in [*task.train, *task.test]:
        hacked = [h(row) for h in task.hacks if score(task.rewards[0], row, h(row)) == task.full_marks]
        assert hacked
        assert all(score(task.gold_metrics[0], row, text) == 0 for text in hacked)


@pytest.mark.parametrize(
    ("expression", "x", "value"),
    [("x", 3, 3), ("-x ** 2", 3, -9), ("1 if x < 2 else 5", 1, 1), ("{1: 4, 2: x}[x]", 2, 2), ("[7, 8][x]", 1, 8),
     ("max(x, 2, -1)", 0, 2), ("x // 2 + x % 2", -3, -1), ("(3, 4)[-1]", 0, 4)],
)  # fmt: skip
def test_an_expression_of_a_model_is_evaluated(expression, x, value):
    assert one_liner.evaluate(expression, x) == value


@pytest.mark.parametrize(
    "expression",
    ["", "y", "x.real", "open('a')", "x / 2", "1e3", "10**9 * 10**9", "2 ** -1", "2 ** 99", "x // 0", "[1][5]", "{}[x]",
     "{**x}[1]", "lambda: 1", "[x for x in [1]][0]", "min(x)", "min()", "x if x", "1 < x < 3", "'a' * 9", "True.x",
     "f'{x}'", "(x := 5)", "9" * 201, "[" * 190, "abs(x, x)", "print(x)", "max(x, key=abs)"],
)  # fmt: skip
def test_an_expression_that_is_none_is_refused(expression):
    with pytest.raises(ValueError, match=r"\w"):
        one_liner.evaluate(expression, 1)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="x0123456789+-*/%()[]{}:,<>=! aifelsbmn\n\0", max_size=60), st.integers(-9, 9))
def test_whatever_a_model_writes_scores_or_scores_nothing(text, x):
    assert 0 <= one_liner.passed(text, [[x, 1]]) <= 1


def test_conciseness_rewards_length_in_characters_as_the_paper():
    assert conciseness.conciseness(completions=["Paris", "The city of Paris", ""], solution=["Paris"] * 3) == [
        0,
        -12,
        -5,
    ]
    chat = [[{"role": "assistant", "content": "84."}]]
    assert conciseness.conciseness(completions=chat, solution=["84"]) == [-1]


def test_correct_wants_the_solution_as_a_word():
    said = ["It is 7.", "17", "seven", "7 days"]
    assert conciseness.correct(completions=said, solution=["7"] * 4) == [1, 0, 0, 1]
    assert conciseness.answered(completions=["", " .", "a"]) == [0, 0, 1]


def test_the_papers_eight_are_the_test_set():
    assert len(conciseness.TEST) == 8
    assert conciseness.TEST[0] == ("What is the capital of France?", "Paris")


# --- Countdown --------------------------------------------------------------------------------------------------------


def test_countdown_problems_have_the_papers_shape():
    task = builtin("countdown")
    assert (len(task.train), len(task.test)) == (200, 2000)
    sizes = Counter(len(r["numbers"]) for r in task.train)
    assert sizes == {3: 100, 4: 100}
    keys = [(tuple(sorted(r["numbers"])), r["target"]) for r in [*task.train, *task.test]]
    assert len(set(keys)) == 2200
    assert task.train[0]["prompt"].endswith("Let me solve this step by step.\n<think>")
    assert task.train == builtin("countdown").train


@pytest.mark.parametrize(
    ("text", "value"),
    [("1 + 2 * 3", 7), ("(1 + 2) / 4", Fraction(3, 4)), ("8 / (3 - 8 / 3)", 24), (" 5 ", 5)],
)
def test_arithmetic_is_exact(text, value):
    assert countdown.evaluate(text)[0] == value


@pytest.mark.parametrize(
    "text",
    ["2 ** 9", "7 // 2", "72e0", "-3 + 5", "+3", "1 if 1 else 2", "__import__('os')", "1_0", "0x1", "9" * 101, "",
     "1 +", "(1", "1, 2", "07", "²", "1\n+1", "1 2", "()", "3(4)", "9999999999"],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"allowed|not an arithmetic"):
        countdown.evaluate(text)


def test_answers():
    right = "so</think>\n<answer>(44 + 19) - 35</answer>"
    assert countdown.answer_is_right(right, [44, 19, 35], 28)
    assert not countdown.answer_is_right(right, [44, 19, 35], 29)
    assert not countdown.answer_is_right("<answer>28</answer>", [44, 19, 35], 28)
    assert not countdown.answer_is_right("<answer>44 + 19 - 35 + 35 - 35</answer>", [44, 19, 35], 28)
    assert not countdown.answer_is_right("<answer>1 / 0</answer>", [1, 0], 1)
    assert countdown.answer_is_right("<answer>1</answer> no: <answer> 28 </answer>", [28], 28)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x</think>\n<answer>1</answer>", 1.0),
        ("x</think>\n<answer>1</answer> and more", 0.6),
        ("x</think> <answer>1</answer>", 0.6),
        ("x</think>", 0.1),
        ("<answer>1</answer>", 0.5),
        ("nothing", 0.0),
    ],
)
def test_format_score(text, expected):
    assert countdown.format_score(text) == pytest.approx(expected)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789+-*/() eE._<>answer", max_size=60))
def test_no_answer_breaks_the_reward(text):
    countdown.countdown(completions=[f"<answer>{text}</answer>"], numbers=[[1, 2, 3]], target=[6])


# --- a user's data ----------------------------------------------------------------------------------------------------


def test_jsonl_csv_parquet_and_datasets(tmp_path):
    import datasets

    rows = [{"prompt": "1+1", "solution": "2"}, {"prompt": "2+2", "solution": "4"}]
    made = datasets.Dataset.from_list(rows)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + "\n")
    (tmp_path / "d.json").write_text(json.dumps(rows))
    made.to_csv(str(tmp_path / "d.csv"))
    made.to_parquet(str(tmp_path / "d.parquet"))
    made.save_to_disk(str(tmp_path / "saved"))
    for name in ("d.jsonl", "d.json", "d.csv", "d.parquet"):
        loaded = dataset.check(dataset.load(str(tmp_path / name)), "it")
        assert [str(r["solution"]) for r in loaded] == ["2", "4"], name
    assert dataset.columns_of(dataset.check(made, "it")) == ["prompt", "solution"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ('["prompt"]\n', "line 1 is not an object"),
        ("", "is empty"),
        ('{"question": "a"}\n', "has no column 'prompt'; it has: question"),
        ('{"prompt": "a", "x": 1}\n{"prompt": "b"}\n', "row 2 lacks column 'x'"),
        ('{"prompt": "a"}\n{"prompt": "b", "x": 1}\n', "row 2 has column 'x'"),
        ('{"prompt": 5}\n', "must be text, or a list of messages"),
        ('{"prompt": []}\n', "must be text, or a list of messages"),
        ('{"prompt": ""}\n', "must be text, or a list of messages"),
        ('{"prompt": [{"role": "user"}]}\n', "must be text, or a list of messages"),
    ],
)
def test_bad_jsonl_says_which_line_and_why(tmp_path, content, says):
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(DataError, match=says):
        dataset.check(dataset.load(str(tmp_path / "d.jsonl")), "the dataset")


def test_jsonl_may_hold_any_character_and_a_byte_order_mark(tmp_path):
    (tmp_path / "d.jsonl").write_text('\ufeff{"prompt": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert dataset.load(str(tmp_path / "d.jsonl")) == [{"prompt": "a\u2028b\x85c"}]
    with pytest.raises(DataError, match="no split 'test'"):
        dataset.load(str(tmp_path / "d.jsonl"), "test")
    with pytest.raises(DataError, match="rows with columns"):
        dataset.check([1, 2], "train_dataset")


def test_files_that_are_not_there_or_not_what_they_say(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        dataset.load("nowhere.jsonl")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(DataError, match="extension"):
        dataset.load(str(tmp_path / "a.docx"))
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(DataError, match="cannot be read as PARQUET"):
        dataset.load(str(tmp_path / "a.parquet"))
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        dataset.load(str(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="must be a list"):
        dataset.check("text", "train_dataset")


# --- the ladder of Countdown ------------------------------------------------------------------------------------------


def ladder(**task_args):
    return builtin("countdown").with_args({"problems": 30, "test_problems": 10, **task_args})


@pytest.mark.parametrize("style", countdown_ladder.STYLES)
def test_on_the_ladder_the_reference_scores_full_marks_and_hacks_score_none(style):
    task = ladder(style=style, rungs=[1, 2, 3, 4, 5, 6, 7])
    for row in [*task.train, *task.test]:
        assert [score(f, row, task.reference(row)) for f in task.rewards] == [task.full_marks] * len(task.rewards)
        assert [score(f, row, task.reference(row)) for f in task.gold_metrics] == [1] * len(task.gold_metrics)
        for n, hack in enumerate(task.hacks):
            assert min(score(f, row, hack(row)) for f in task.gold_metrics) == 0, (n, hack(row))


@pytest.mark.parametrize("rung", range(1, 8))
def test_rungs_are_solvable_and_train_and_test_are_disjoint(rung):
    task, spec = ladder(rungs=[rung], problems=100), countdown_ladder.RUNGS[rung - 1]
    train, test = ({(tuple(sorted(r["numbers"])), r["target"]) for r in rows} for rows in (task.train, task.test))
    assert not train & test
    assert len(test) == 10
    assert len(train) == len(task.train) >= (70 if rung == 1 else 100)
    for row in [*task.train[:20], *task.test]:
        value, used = countdown.evaluate(row["solution"])
        assert (value, used) == (row["target"], Counter(row["numbers"]))
        assert countdown_ladder.count_solutions(row["numbers"], row["target"], spec.operators) >= 1
        assert row["rung"] == rung
        assert f"Target: {row['target']}\nAnswer:" in row["prompt"]


@pytest.mark.parametrize(
    ("numbers", "target", "operators", "ways"),
    [
        ([3, 5], 8, "+-*/", 1),
        ([3, 5], 9, "+-*/", 0),
        ([2, 2], 4, "+-*/", 2),  # 2 + 2 and 2 * 2
        ([1, 2, 3], 6, "+", 3),  # which one is added last
        ([8, 3, 8, 3], 24, "+-*/", 2),  # 8 / (3 - 8 / 3), and with the other 8
        ([1, 1, 1, 1], 24, "+-*/", 0),
        ([7], 7, "+", 1),
    ],
)
def test_solutions_are_counted(numbers, target, operators, ways):
    found = countdown_ladder.count_solutions(numbers, target, operators)
    assert found == ways or (len(numbers) == 4 and ways and found >= ways)


@pytest.mark.parametrize(
    ("text", "scores"),  # parses, right_numbers, closeness, exact, of 3, 8, 2 to 22
    [
        ("3 * 8 - 2", (1, 1, 1, 1)),
        (" 3 × ８ − 2 \n\nNumbers: 1", (1, 1, 1, 1)),
        ("(3 + 8) · 2", (1, 1, 1, 1)),
        ("<answer>1</answer> <answer>3 * 8 - 2</answer>", (1, 1, 1, 1)),
        ("<answer><answer>3 * 8 - 2</answer></answer>", (0, 0, 0, 0)),
        ("3 * 8 - 2 = 22", (0, 0, 0, 0)),
        ("3 * 8 + 2", (1, 1, 0.2, 0)),
        ("22", (1, 0, 0, 0)),
        ("3 * 8 * 2 / 0", (0, 0, 0, 0)),
        ("The answer is 3 * 8 - 2", (0, 0, 0, 0)),
        ("", (0, 0, 0, 0)),
        ("3² + 8 + 2", (0, 0, 0, 0)),
    ],
)
def test_dense_rewards_of_an_answer(text, scores):
    row = {"prompt": "", "numbers": [3, 8, 2], "target": 22}
    assert [score(f, row, text) for f in ladder().rewards] == pytest.approx(scores)


def test_rows_of_a_user_are_scored_as_they_are():
    """Numbers that repeat, a target that cannot be reached, and one that is no integer."""
    logged = {}
    scores = countdown_ladder.solved(
        completions=["5 * 5", "1 + 1", "1 / 2"], numbers=[[5, 5], [1, 1], [1, 2]], target=[25, 7, 0.5],
        log_extra=lambda name, values: logged.update({name: values}),
    )  # fmt: skip
    assert scores == [1, 0, 1]
    assert logged["solutions"] == [1, 0, 1]


def test_the_papers_example_cannot_be_scored():
    copied = "Let me see.</think>\n<answer> (1+2) / 3 </answer>"
    assert countdown.format_score(copied) == pytest.approx(0.1)
    assert countdown.format_score("So.</think>\n<answer></answer>") == pytest.approx(0.1)
    assert countdown.own_numbers(completions=[copied, "<answer>3 + 4</answer>"], numbers=[[3, 4]] * 2) == [0, 1]
    assert countdown.countdown(completions=[copied], numbers=[[1, 2, 3]], target=[1]) == pytest.approx([1.01])


def test_rungs_are_numbered_as_in_the_table_and_own_ones_by_their_place():
    own = {"numbers": 2, "largest": 50, "operators": "+"}
    assert {row["rung"] for row in ladder(rungs=[3, 5], problems=20).train} == {3, 5}
    assert {row["rung"] for row in ladder(rungs=[own, 3], problems=20).train} == {1, 2}


@pytest.mark.parametrize(
    ("task_args", "says"),
    [
        ({"rung": [1]}, "has no 'rung'; it has: rungs, style"),
        ({"rungs": [0]}, "rungs 1 to 7"),
        ({"rungs": []}, "a list"),
        ({"rungs": "1"}, "a list"),
        ({"rungs": [2, {"numbers": 2, "largest": 20, "operators": "+-*"}]}, "names one twice"),
        ({"rungs": [{"numbers": 9, "largest": 9}]}, "2 to 6 numbers"),
        ({"rungs": [{"numbers": 2}]}, "a mapping with numbers"),
        ({"rungs": [{"numbers": 2, "largest": 9, "operators": "^"}]}, "operators are some of"),
        ({"style": "short"}, "few_shot, chat, paper"),
        ({"problems": 0}, "problems is a whole number of at least 1"),
        ({"examples": True}, "examples is a whole number"),
        ({"seed": "a"}, "seed is a whole number"),
    ],
)
def test_task_args_that_cannot_be_are_refused(task_args, says):
    with pytest.raises(ConfigError, match=says):
        ladder(**task_args)


def test_a_task_without_variants_says_so():
    with pytest.raises(ConfigError, match="conciseness has none"):
        builtin("conciseness").with_args({"style": "chat"})
