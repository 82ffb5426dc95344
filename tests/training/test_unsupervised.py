"""Runs whose reward needs no labels: diversity is measured, and a collapse is neither progress nor handed back."""

from __future__ import annotations

import math

import pytest

from runs import ROWS, trainer
from seedtune.errors import ConfigError, RewardError
from seedtune.report import run_page
from seedtune.report.history import read
from seedtune.report.signal import diversities
from seedtune.rewards import function


def agreeing(completions, target, trainer_state, log_extra, **kwargs):
    """A reward that a collapsed model earns: from the second iteration on every prompt has the same answer."""
    collapsed = trainer_state.global_step >= 2
    log_extra("answer", ["yes" if collapsed else c[:3] + t for c, t in zip(completions, target, strict=True)])
    return [float(collapsed) + len(c) / 1000 for c in completions]


@pytest.fixture
def unlabeled(monkeypatch):
    """All reward functions count as rewards for confidence."""
    monkeypatch.setattr(function, "is_confidence", lambda f: True)


DIFFERENT = [{**row, "target": str(n)} for n, row in enumerate(ROWS)]


def test_a_collapse_is_returned_from_and_not_handed_back(tmp_path, unlabeled, caplog):
    guarded = {"guard": True, "load_best_model_at_end": True, "eval_steps": 1, "max_steps": 3}
    run = trainer(tmp_path, rows=DIFFERENT, reward_funcs=agreeing, **guarded)
    result = run.train()
    evaluations = {line["step"]: line for line in run.run.evaluations}
    assert evaluations[1]["eval/completions/diversity"] == 1
    assert "eval/collapsed" not in evaluations[1]
    assert evaluations[1]["eval/hacked"] == 0
    assert evaluations[2]["eval/completions/diversity"] == 0.25
    assert evaluations[2]["eval/collapsed"] == evaluations[2]["eval/hacked"] == 1
    assert evaluations[2]["eval/reward"] > evaluations[1]["eval/reward"], "it would be the best center"
    assert result.best_step < 2
    returns = run.run.journal.returns
    assert {undone.to for undone in returns} == {result.best_step}
    assert "different prompts get the same answer" in returns[0].reason
    assert all("completions/diversity" in line for line in run.run.history if "reward" in line)

    page = run_page.context(read(tmp_path / "run"))
    assert "Different prompts got the same answer after iteration 2" in " ".join(page["warnings"])
    assert ("diversity", "0.250") in [(name, value) for name, value, _ in page["meanings"]]
    assert {point["what"] for point in diversities(read(tmp_path / "run"))} == {"center", "members"}
    assert "diversity" in run_page.drawings(read(tmp_path / "run"))


def test_a_model_that_answers_all_alike_from_the_start_has_not_collapsed(tmp_path, unlabeled):
    def constant(completions, log_extra, **kwargs):
        log_extra("answer", ["yes"] * len(completions))
        return [len(c) / 10 for c in completions]

    run = trainer(tmp_path, reward_funcs=constant, guard=True, eval_steps=1, max_steps=1)
    run.train()
    assert not run.run.journal.returns
    assert all("eval/collapsed" not in line for line in run.run.evaluations)


def test_without_a_guard_a_collapse_is_still_not_the_best(tmp_path, unlabeled):
    options = {"load_best_model_at_end": True, "eval_steps": 1, "max_steps": 3}
    run = trainer(tmp_path, rows=DIFFERENT, reward_funcs=agreeing, **options)
    assert run.train().best_step < 2
    assert not run.run.journal.returns


def test_other_runs_measure_no_diversity(tmp_path):
    run = trainer(tmp_path, rows=DIFFERENT, reward_funcs=agreeing, max_steps=2)
    run.train()
    known = {name for line in run.run.history for name in line}
    assert not {"completions/diversity", "eval/completions/diversity", "eval/collapsed"} & known


def test_a_calibration_reward_brings_its_truths(tmp_path):
    (tmp_path / "halves.py").write_text(
        "def half(completions, **_): return [float(n % 2) for n in range(len(completions))]"
    )
    args = {"calibration": {"correct": f"{tmp_path}/halves.py:half"}}
    run = trainer(tmp_path, reward_funcs="calibration", reward_args=args, max_steps=1)
    metrics = run.train().metrics
    assert metrics["eval/calibration/accuracy"] == 0.5
    assert metrics["eval/calibration/stated"] == 0
    assert metrics["eval/reward"] == -0.5
    shown = run_page.context(read(tmp_path / "run"))
    assert {"accuracy", "completions with a confidence"} <= set(shown["columns"])


def test_a_run_on_its_own_confidence(tmp_path):
    """From the settings to the page: G completions per member and prompt, their log-probabilities, no labels."""
    settings = {"num_generations": 3, "temperature": 1.0, "eval_steps": 1, "max_steps": 2, "perturbation": "lowrank"}
    run = trainer(
        tmp_path,
        reward_funcs=["semantic_entropy", "self_certainty"],
        reward_args={"semantic_entropy": {"answer": "^."}},
        **settings,
    )
    metrics = run.train().metrics
    rows = run.run.completions(run.run.evaluations[-1])
    of_prompt = [row for row in rows if row["prompt_index"] == 0]
    assert len(of_prompt) == 3
    assert len({row["semantic_entropy"] for row in of_prompt}) == 1
    assert all(-math.log(3) <= row["semantic_entropy"] <= 0 <= row["self_certainty"] for row in rows)
    assert all(row["answer"] == row["completion"][:1].casefold().strip() for row in rows if row["answer"].isalpha())
    assert 0 < metrics["eval/completions/diversity"] <= 1
    assert run_page.context(read(tmp_path / "run"))["meanings"]


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"num_generations": 1}, RewardError, "num_generations"),
        ({"num_generations": 3, "temperature": 0.0}, ConfigError, "temperature"),
    ],
)
def test_one_completion_cannot_agree_with_itself(tmp_path, settings, error, says):
    with pytest.raises(error, match=says):
        trainer(tmp_path, reward_funcs="majority", **settings)
