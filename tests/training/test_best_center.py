"""The best center: which run tracks it, what is handed back, and what a resume knows of it."""

from __future__ import annotations

import pytest
import torch

from runs import journal_of, plain, trainer, weights
from seedtune.cli.main import main
from seedtune.errors import ConfigError
from seedtune.evaluation import best
from seedtune.journal.folder import RunFolder
from seedtune.training import guard
from tiny import save_tiny

ON = {"guard": True, "load_best_model_at_end": True}


def made(tmp_path, name="run", **options):
    """A run on a model that lies in a folder, evaluated after every iteration."""
    if not (tmp_path / "base").exists():
        save_tiny(tmp_path / "base", dtype=torch.float32)
    how = {"reward_funcs": plain, "eval_steps": 1, **options}
    return trainer(tmp_path, model=str(tmp_path / "base"), output_dir=str(tmp_path / name), **how)


def never_better(monkeypatch):
    monkeypatch.setattr(best, "replaces", lambda new, old, **_: False)


def test_a_run_that_hands_back_its_base_model_says_so_everywhere(tmp_path, monkeypatch, capsys):
    never_better(monkeypatch)
    t = made(tmp_path, load_best_model_at_end=True)
    assert t.train().why.startswith("No center of this run is better than the base model (reward ")
    run = tmp_path / "run"
    assert weights(run / "checkpoint-best") == weights(tmp_path / "base") != weights(run / "checkpoint-3")
    card = (run / "checkpoint-best" / "README.md").read_text()
    assert "| center, on the evaluation prompts | base model |" in card  # nothing of the last center's metrics
    assert "| before | after |" in (run / "checkpoint-3" / "README.md").read_text()
    assert main(["inspect", str(run)]) == 0
    assert "the base model's: no center was better" in capsys.readouterr().out
    assert main(["replay", str(run), "--out", str(tmp_path / "again")]) == 0
    assert weights(tmp_path / "again") == weights(tmp_path / "base")
    assert main(["export", str(run), "--patch", str(tmp_path / "x.seedtune")]) == 1
    assert "--until last exports its last center" in capsys.readouterr().err
    assert main(["export", str(run), "--until", "last", "--patch", str(tmp_path / "x.seedtune")]) == 0
    assert main(["diff", str(run), str(tmp_path / "x.seedtune")]) == 0


def test_the_best_is_saved_where_it_is_not_handed_back(tmp_path, monkeypatch):
    monkeypatch.setattr(best, "replaces", lambda new, old, **_: new.step == 2)
    t = made(tmp_path, save_strategy="best")
    t.train()
    assert t.run.center == 3
    best_of = tmp_path / "run" / "checkpoint-best"
    assert "\nThe center after iteration 2 of" in (best_of / "README.md").read_text()
    assert weights(best_of) != weights(tmp_path / "run" / "checkpoint-3")


def test_a_run_that_is_resumed_to_be_tracked_compares_its_evaluations_again(tmp_path, monkeypatch):
    """Of a run that did not track its best, as those of 0.1.0, the base model may still be what is handed back."""
    never_better(monkeypatch)
    made(tmp_path, max_steps=2).train()
    t = made(tmp_path, load_best_model_at_end=True)
    assert t.train(resume_from_checkpoint=True).best_step == 0
    assert RunFolder(tmp_path / "run").best() == 0


def test_a_metric_that_the_evaluations_before_a_resume_do_not_have(tmp_path):
    made(tmp_path, max_steps=2, load_best_model_at_end=True).train()
    t = made(tmp_path, load_best_model_at_end=True, metric_for_best_model="accuracy")
    with pytest.raises(ConfigError, match=r"no metric 'eval/accuracy'; it has: eval/reward"):
        t.train(resume_from_checkpoint=True)


def test_by_which_metric_a_center_is_worse(tmp_path, monkeypatch):
    """A return for a gold metric names that; the reward may well have risen."""
    monkeypatch.setattr(guard, "MAX_STEP_KL", 1e9)
    monkeypatch.setattr(best, "compare", lambda new, old, **_: -int(new.step == 2))

    def written(completions, **_):
        return [float(len(c)) for c in completions]

    t = made(tmp_path, **ON, metric_for_best_model="written", eval_funcs=written, max_kl=1e9)
    t.train()
    value = t.run.evaluation(2)["eval/written"]
    assert [r.reason for r in t.run.journal.returns] == [f"the center has become worse: its written is {value:.3g}"]


def test_what_noise_costs_is_not_measured_with_members_of_a_center_that_was_left(tmp_path, monkeypatch):
    reasons = {2: "for a test"}
    monkeypatch.setattr(guard.Guard, "iteration", lambda self, line, comparable: reasons.pop(t.run.step, None))
    monkeypatch.setattr(guard.Guard, "evaluation", lambda *_: None)
    t = made(tmp_path, **ON, eval_steps=4, max_steps=4)
    t.train()
    assert [r.t for r in t.run.journal.returns] == [2]
    earned = {line["step"]: line["reward"] for line in t.run.history if "reward" in line}
    last = t.run.evaluation(4)
    assert last["es/noise_cost"] == pytest.approx(last["eval/reward"] - (earned[3] + earned[4]) / 2)


def test_a_trainer_that_handed_back_its_best_goes_on_from_its_last(tmp_path, monkeypatch):
    never_better(monkeypatch)
    made(tmp_path, "whole", load_best_model_at_end=True, max_steps=4).train()
    made(tmp_path, load_best_model_at_end=True, max_steps=2).train()
    t = made(tmp_path, load_best_model_at_end=True, max_steps=4)
    t.train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
    assert t.run.center == 0
    t.train(resume_from_checkpoint=True)  # it holds the base model, and has nothing left to do
    assert weights(tmp_path / "run" / "checkpoint-best") == weights(tmp_path / "base")
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
