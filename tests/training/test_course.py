"""Runs whose prompts and reward weights change as they learn: journaled, resumed to the same bits, refused in words."""

from __future__ import annotations

import json

import pytest

from runs import ROWS, config, journal_of, trainer
from seedtune.errors import ConfigError, DataError
from seedtune.journal.store import Journal

LEVELED = [{**row, "level": n // 2 + 1} for n, row in enumerate([*ROWS, *ROWS])]
STAGES = [{"weights": [1.0, 0.0], "until": 2}, {"weights": [0.0, 2.0]}]


def half(completions, **_):
    return [0.5 + 0.01 * c.count("e") for c in completions]


def most(completions, **_):
    return [0.9 - 0.001 * c.count("e") for c in completions]


def course(tmp_path, name="run", **options):
    settings = {"prompts_per_step": 2, "curriculum": {"column": "level", "success": "most"}, "max_steps": 5,
                "reward_weights": STAGES, "output_dir": str(tmp_path / name), "eval_dataset": ROWS}  # fmt: skip
    return trainer(tmp_path, rows=LEVELED, reward_funcs=[half, most], **{**settings, **options})


def metrics_of(tmp_path, name="run"):
    return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]


def test_levels_are_opened_and_weights_change(tmp_path):
    course(tmp_path).train()
    lines = [line for line in metrics_of(tmp_path) if "reward" in line]
    assert [line["curriculum/open"] for line in lines] == [3, 4, 4, 4, 4]
    assert [line["reward"] > 1 for line in lines] == [False, False, True, True, True]
    evaluations = [line for line in metrics_of(tmp_path) if "eval/reward" in line]
    assert all(line["eval/reward"] > 1.5 for line in evaluations), "evaluations go by the last weights"
    done = Journal.read(tmp_path / "run")[0].iterations
    assert [it.prompts for it in done[:1]] == [tuple(sorted(done[0].prompts))] or len(done[0].prompts) == 2
    assert {LEVELED[n]["level"] for n in done[0].prompts} == {1, 2}
    assert {LEVELED[n]["level"] for n in done[1].prompts} == {3}
    assert [it.control["reward_stage"] for it in done] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path, at):
    course(tmp_path, "whole", guard=True).train()
    course(tmp_path, "cut", guard=True, max_steps=at).train()
    again = course(tmp_path, "cut", guard=True)
    again.train(resume_from_checkpoint=True)
    assert journal_of(tmp_path, "cut") == journal_of(tmp_path, "whole")


def test_a_stage_may_end_by_a_metric(tmp_path):
    stages = [{"weights": [1, 0], "until": "eval/rewards/half/mean > 0.1"}, {"weights": [0, 1]}]
    course(tmp_path, reward_weights=stages, curriculum=None, max_steps=2, eval_steps=1).train()
    assert [it.control["reward_stage"] for it in Journal.read(tmp_path / "run")[0].iterations] == [1, 1]


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([{"weights": [1, 1], "until": 3}], "every stage but the last"),
        ([{"weights": [1, 1]}, {"weights": [1, 1]}], "every stage but the last"),
        ([{"weights": [1, 1], "until": "soon"}, {"weights": [1, 1]}], "reward_weights: 'soon'"),
        ([{"weights": [1, 1], "until": 0}, {"weights": [1, 1]}], "from 1"),
        ([{"weights": [1, 1], "to": 0}, {"weights": [1, 1]}], "weights and until"),
        ([{"weights": "x", "until": 1}, {"weights": [1, 1]}], "list of numbers"),
        ([{"weights": [1, 1], "until": 3}, 1.0], "not of both"),
        ([{"weights": [1], "until": 3}, {"weights": [1, 1]}], "1 numbers for 2"),
    ],
)
def test_stages_that_cannot_be_are_refused(tmp_path, stages, says):
    with pytest.raises(ConfigError, match=says):
        course(tmp_path, reward_weights=stages)


def test_a_rule_on_a_metric_that_is_not_there_is_refused(tmp_path):
    stages = [{"weights": [1, 0], "until": "eval/nothing > 0"}, {"weights": [0, 1]}]
    with pytest.raises(ConfigError, match="reward_weights: evaluation has no metric 'eval/nothing'"):
        course(tmp_path, reward_weights=stages).train()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"curriculum": {"column": "nothing"}}, DataError, "no column 'nothing'"),
        ({"curriculum": {"column": "level", "success": "letters"}}, ConfigError, "half, most"),
        ({"prompts_per_step": None}, ConfigError, "Set prompts_per_step"),
        (
            {"prompts_per_step": 4, "prompts_per_member": 4, "fitness_shaping": "group"},
            ConfigError,
            "a level has 2 rows",
        ),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused(tmp_path, options, error, says):
    with pytest.raises(error, match=says):
        course(tmp_path, **options)


def test_journals_without_either_are_resumed(tmp_path):
    """Neither setting is in the journal of a run that is older than they are."""
    assert config(tmp_path).trajectory_defaults()["curriculum"] is None
