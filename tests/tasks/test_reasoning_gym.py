"""reasoning-gym: every dataset loads, right answers score full marks, and hacks score none, however its scorer can be
hacked.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("reasoning_gym")

from reasoning_gym.factory import DATASETS

from seedtune.errors import ConfigError
from seedtune.tasks import reasoning_gym
from seedtune.tasks.gym import items, scoring
from seedtune.tasks.gym.guard import DENSE, OWN, RISKS
from seedtune.tasks.gym.solutions import solution
from seedtune.tasks.registry import builtin

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
NAMES = sorted(set(DATASETS) - {"composite"})


@cache
def made(name, **config):
    """Three items to train on and one to test on."""
    wanted = {"name": name, "size": 3, "test_size": 1, "seed": 3, "config": config, "levels": None}
    (part,) = items.make(wanted)["parts"]
    return part


def gym(name, **task_args):
    return builtin("reasoning_gym").with_args({"name": name, **task_args})


def scores(rows, completions, function=reasoning_gym.reasoning_gym_score):
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    return function(completions=completions, **columns)


def test_names_are_those_of_reasoning_gym():
    assert len(NAMES) == 105
    assert {*RISKS, *OWN, *DENSE} <= {*NAMES}
    assert {name for name, risk in RISKS.items() if risk.pattern is None} <= {*OWN}


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_score_full_marks_and_hacks_score_none(name):
    part = made(name)
    assert (len(part["train"]), len(part["test"])) == (3, 1)
    for item in [*part["train"], *part["test"]]:
        entry = json.loads(item["entry"])
        gold = solution(name, entry)

        def score(answer, item=item):
            return scoring.score(answer, item["entry"], name, item["config"], item["floor"])

        assert score(gold) == 1
        question = entry["question"]
        junk = ["", " ", question, question[-200:], "0" * 50, "nan", "[NaN]", "inf", "9" * 5000,
                "__import__('os').getcwd()",
                gold * 20, "[[]]", "()", "\x00", "٣", "1e99999", "Integral(x, x)", "x.__class__"]  # fmt: skip
        for answer in junk:
            right = name == "sokoban" and answer == gold * 20  # steps against a wall change nothing
            nearly = name in DENSE and answer == gold * 20 and score(answer) < 1  # it begins with the right answer
            zero = answer.strip("0") == gold.strip("0.") == ""
            assert score(answer) == 0 or right or nearly or zero, answer[:200]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("puzzle24", "6*4*1*1"),
        ("puzzle24", "24.9"),
        ("countdown", "72e0"),
        ("game_of_life_halting", "whatever"),
        ("number_sorting", '["nan", "nan"]'),
        ("complex_arithmetic", "nan"),
        ("intermediate_integration", "Integral({integrand}, {variable})"),
        ("simple_integration", "integrate({integrand}, {variable})"),
        ("polynomial_multiplication", "expand({polynomial_expr})"),
        ("rush_hour", "A+99999999999"),
        ("coin_flip", "1e999999999"),
        ("prime_factorization", "{number}"),
        ("fraction_simplification", "none"),
        ("boxnet", "[]"),
        ("polynomial_equations", "none"),
    ],
)
def test_hacks_of_the_librarys_scorers_earn_nothing(name, answer):
    """Each earns something from the library itself, or never ends there, unless it is no more than a guess."""
    for item in made(name)["train"]:
        metadata = json.loads(item["entry"])["metadata"]
        numbers = {"number": metadata.get("number", "1")}
        said = answer.format(**{**metadata, **numbers}) if "{" in answer and "[" not in answer else answer
        if name == "number_sorting":
            said = json.dumps(["nan"] * len(metadata["original_numbers"]))
        if said != json.loads(item["entry"])["answer"]:
            assert scoring.score(said, item["entry"], name, item["config"], item["floor"]) == 0, said


def test_library_hacks_are_hacks():
    """What the guard is for: reasoning-gym itself pays for these. Where it does not any more, the guard may go."""
    scores = {}
    hacks = {"game_of_life_halting": "whatever", "complex_arithmetic": "nan", "fraction_simplification": "none"}
    for name, said in hacks.items():
        item = made(name)["train"][0]
        scores[name] = scoring.dataset(name, item["config"]).score_answer(said, json.loads(item["entry"]))
    assert scores == {"game_of_life_halting": 1, "complex_arithmetic": 1, "fraction_simplification": 0.01}


# --- the task -------------------------------------------------------------------------------------------------------


def test_train_and_test_are_disjoint_and_repeat():
    """Also of a dataset that goes by the order of sets."""
    for name in ("word_ladder", "tower_of_hanoi"):
        task = gym(name, size=12, test_size=4)
        train, test = ({json.loads(row["entry"])["question"] for row in rows} for rows in (task.train, task.test))
        assert not train & test
        assert len(train) == len(task.train)
        assert len(test) == len(task.test) >= 1
        reasoning_gym._load.cache_clear()
        assert gym(name, size=12, test_size=4).train == task.train


def test_through_the_task_as_through_the_scorer():
    task = gym("mini_sudoku", size=4, test_size=2)
    right = [task.reference(row) for row in task.train]
    assert scores(task.train, right) == [1] * 4
    assert scores(task.train, right, task.gold_metrics[0]) == [1] * 4
    one_wrong = [text.replace("1", "2", 1) for text in right]
    parts = scores(task.train, one_wrong)
    assert all(0 < part < 1 for part in parts)
    assert scores(task.train, one_wrong, task.gold_metrics[0]) == [0] * 4
    for hack in task.hacks:
        assert scores(task.train, [hack(row) for row in task.train]) == [0] * 4
    messages = [[{"role": "assistant", "content": text}] for text in right]
    assert scores(task.train, messages) == [1] * 4


def test_levels_are_a_column_and_a_curriculum():
    task = gym("chain_sum", size=3, test_size=2, levels=[0, 2], style="few_shot", examples=2)
    assert [row["level"] for row in task.train] == [0, 0, 0, 2, 2, 2]
    assert task.defaults["curriculum"]["column"] == "level"
    assert task.train[0]["prompt"].count("Question: ") == 3
    assert task.train[0]["prompt"].endswith("\nAnswer:")
    digits = [len(json.loads(row["entry"])["question"]) for row in task.train]
    assert max(digits[:3]) < min(digits[3:])


@pytest.mark.parametrize(
    ("task_args", "says"),
    [
        ({"size": 3}, "needs 'name'"),
        ({"name": "composite"}, "no dataset 'composite'"),
        ({"name": 3}, "name is the name"),
        ({"name": "sudoku", "config": {"x": 1}}, "refuses these settings of sudoku: .*'x'"),
        ({"name": "sudoku", "config": {"min_empty": -1}}, "refuses these settings of sudoku: min_empty"),
        ({"name": "sudoku", "levels": [9]}, "refuses these settings of sudoku at level 9: .*levels 0 to 4"),
        ({"name": "gsm_symbolic", "levels": [0]}, "no curriculum"),
        ({"name": "sudoku", "levels": []}, "levels is a list"),
        ({"name": "sudoku", "size": 0}, "size is a whole number of at least 1"),
        ({"name": "sudoku", "style": "short"}, "chat, few_shot"),
        ({"name": "sudoku", "config": 3}, "config is a mapping"),
        ({"name": "tower_of_hanoi", "size": 5, "config": {"max_disks": 3, "max_pegs": 3},
          "examples": 40},
         "too few to train on"),
    ],
)  # fmt: skip
def test_task_args_that_cannot_be_are_refused(task_args, says, monkeypatch):
    """By what makes items, in this process: to start another one takes longer than all else."""

    def here(command, input, **_):
        return SimpleNamespace(stdout=json.dumps(items.make(json.loads(input))))

    monkeypatch.setattr(reasoning_gym.subprocess, "run", here)
    with pytest.raises(ConfigError, match=says):
        assert builtin("reasoning_gym").with_args(task_args).train


def test_a_refusal_comes_out_of_the_process_that_makes_items():
    with pytest.raises(ConfigError, match="no dataset 'sudok'; it has: ab, acre"):
        assert builtin("reasoning_gym").with_args({"name": "sudok"}).train


def test_without_args_it_says_what_to_set():
    with pytest.raises(ConfigError, match=r"task_args: \{name: mini_sudoku\}"):
        assert builtin("reasoning_gym").train


def test_a_scorer_that_never_ends_scores_nothing_and_is_counted(monkeypatch):
    monkeypatch.setattr(reasoning_gym, "_process", type("Slow", (), {"call": lambda *_, **__: None})())
    logged = {}
    row = {"entry": ["{}"], "name": ["x"], "config": ["{}"], "floor": [0.0]}
    found = reasoning_gym.reasoning_gym_score(["<answer>1</answer>"], **row, log_metric=logged.__setitem__)
    assert (found, logged) == ([0.0], {"reasoning_gym/late": 1.0})


def test_the_table_of_the_documentation():
    """Every dataset is in it; right answers have full marks and hacks none; and it is what the script writes."""
    root = Path(__file__).parent.parent.parent
    spec = importlib.util.spec_from_file_location("tasks_table", root / "benchmarks" / "tasks_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lines = script.PAGE.read_text().split(script.BEGIN)[1].split(script.END)[0].strip().splitlines()[2:]
    cells = {line.split("|")[1].strip(" `"): [cell.strip() for cell in line.split("|")[2:]] for line in lines}
    assert sorted(cells) == NAMES
    assert {(*row[1 : 2 + len(script.HACKS)],) for row in cells.values()} == {("1", *["0"] * len(script.HACKS))}
    for name in ("mini_sudoku", "complex_arithmetic", "coin_flip"):
        assert script.row(name, int(cells[name][0])) in lines
