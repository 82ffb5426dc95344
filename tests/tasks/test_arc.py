"""Tasks in ARC's format."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sandboxes import needs_bubblewrap
from seedtune.errors import ConfigError, DataError
from seedtune.tasks.arc import task as arc
from seedtune.tasks.arc.task import arc_cells, arc_solved
from seedtune.tasks.registry import builtin

PAIR = {"input": [[1, 2]], "output": [[2, 1]]}


def write(folder, name="a", **task):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"train": [PAIR], "test": [PAIR], **task}))


def scores(code, inputs=([[1, 2, 3]], [[4, 5, 6]]), outputs=([[3, 2, 1]], [[6, 5, 4]])):
    columns = {"completions": [code], "test_inputs": [list(inputs)], "test_outputs": [list(outputs)]}
    return arc_solved(**columns)[0], arc_cells(**columns)[0]


@needs_bubblewrap
@pytest.mark.parametrize(
    ("code", "solved", "cells"),
    [
        ("def transform(grid): return [row[::-1] for row in grid]", 1, 1),
        ("def transform(grid): return tuple(tuple(reversed(row)) for row in grid)", 1, 1),
        ("def transform(grid): return grid", 0, 1 / 3),
        ("def transform(grid):\n    if grid[0][0] == 4: exit()\n    return [row[::-1] for row in grid]", 0.5, 0.5),
        ("def transform(grid): return [[3, 2, 1]]", 0.5, 0.5),
        ("def transform(grid): return [[3, 2]]", 0, 0),
        ("def transform(grid): return [[3, 2, '1']]", 0, 0),
        ("def transform(grid): return [[3.0, 2.0, True]]", 0.5, 0),
        ("def transform(grid): return None", 0, 0),
        ("def transform(grid): 1 / 0", 0, 0),
        ("print('[0, [\"list\", []]]')", 0, 0),
        ("no code", 0, 0),
    ],
)
def test_scores(code, solved, cells):
    assert scores(code) == pytest.approx((solved, cells))


@needs_bubblewrap
def test_a_transformation_without_an_end(monkeypatch):
    monkeypatch.setattr(arc, "_LIMITS", replace(arc._LIMITS, seconds=1.0))
    assert scores("def transform(grid):\n    while True: pass") == (0, 0)


def test_a_folder_of_tasks(tmp_path):
    write(tmp_path / "training", "one")
    write(tmp_path / "training", "two")
    write(tmp_path / "evaluation", "three")
    task = builtin("arc").with_args({"folder": str(tmp_path)})
    assert [[row["task"] for row in rows] for rows in (task.train, task.test)] == [["one", "two"], ["three"]]
    task = builtin("arc").with_args({"folder": str(tmp_path / "training")})
    assert [[row["task"] for row in rows] for rows in (task.train, task.test)] == [["one"], ["two"]]
    both = {"folder": str(tmp_path / "training"), "test_folder": str(tmp_path / "evaluation"), "dense": True}
    task = builtin("arc").with_args(both)
    assert (task.rewards, task.gold_metrics) == ((arc_cells,), (arc_solved,))
    assert "Input:\n12\nOutput:\n21" in task.train[0]["prompt"][0]["content"]


def test_outputs_are_not_in_the_prompt(tmp_path):
    write(tmp_path / "x", test=[{"input": [[7, 8, 9]], "output": [[9, 8, 7]]}])
    task = builtin("arc").with_args({"folder": str(tmp_path / "x")})
    assert "789" in task.train[0]["prompt"][0]["content"]
    assert "987" not in task.train[0]["prompt"][0]["content"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "it is not JSON"),
        ("[]", "needs train and test"),
        ('{"train": [], "test": []}', "needs train and test"),
        ('{"train": 5, "test": [1]}', "train, pair 1: input is a grid"),
        (json.dumps({"train": [PAIR], "test": [{"input": [[1]]}]}), "test, pair 1: output is a grid"),
        (json.dumps({"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": [PAIR]}), "rows of equal length"),
        (json.dumps({"train": [{"input": [[10]], "output": [[1]]}], "test": [PAIR]}), "colors 0 to 9"),
        (json.dumps({"train": [{"input": [[True]], "output": [[1]]}], "test": [PAIR]}), "input is a grid"),
    ],
)
def test_files_that_are_no_tasks(tmp_path, content, says):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match=says):
        _ = builtin("arc").with_args({"folder": str(tmp_path)}).train


@pytest.mark.parametrize(
    ("task_args", "error", "says"),
    [
        ({"folder": "/nowhere"}, DataError, "no folder '/nowhere'"),
        ({"folder": 5}, ConfigError, "folder is the name of a folder"),
        ({"test_folder": "x"}, ConfigError, "goes with folder"),
        ({"dense": 1}, ConfigError, "dense is true or false"),
    ],
)
def test_task_args_that_cannot_be_are_refused(task_args, error, says):
    with pytest.raises(error, match=says):
        _ = builtin("arc").with_args(task_args).train


def test_a_folder_without_tasks(tmp_path):
    with pytest.raises(DataError, match=r"has no \.json files"):
        _ = builtin("arc").with_args({"folder": str(tmp_path)}).train
