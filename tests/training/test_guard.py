"""Nobody's run may ruin a model: one that diverges returns to its best center, and hands back at least its base."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from runs import ROWS, Notes, config, journal_of, plain, trainer, weights, without_times
from seedtune.cli.main import main
from seedtune.errors import ConfigError, JournalError
from seedtune.evaluation import best
from seedtune.journal.folder import RunFolder
from seedtune.journal.store import Journal
from seedtune.training import guard
from seedtune.training.guard import MAX_RETURNS, Guard
from seedtune.training.replay import load, rebuild
from seedtune.utils.files import read_lines, write_lines
from tiny import save_tiny, tiny_llama

ON = {"guard": True, "load_best_model_at_end": True}


def guarded(tmp_path, name="run", **options):
    """A run on a model that lies in a folder, with guard and best center."""
    base = tmp_path / "base"
    if not base.exists():
        save_tiny(base, dtype=torch.float32)
    settings = {"sigma": 0.05, "antithetic": True, "population_size": 8, "eval_steps": 1, "reward_funcs": plain}
    return trainer(tmp_path, model=str(base), output_dir=str(tmp_path / name), **{**settings, **ON, **options})


def records(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("perturbation", ["full", "lowrank"])
def test_a_learning_rate_far_too_large_ruins_nothing(tmp_path, perturbation):
    t = guarded(tmp_path, perturbation=perturbation, learning_rate=4.0, max_steps=9)
    result = t.train()
    returns = [line for line in records(tmp_path / "run") if line["kind"] == "return"]
    assert len(returns) == MAX_RETURNS
    assert "times" in result.why
    rates = {it.t: it.learning_rate for it in t.run.journal.iterations}
    scales = [float.fromhex(line["scale"]) for line in returns]
    assert all(scale <= 0.5 for scale in scales)
    assert [rates[line["t"] + 1] for line in returns] == pytest.approx(4.0 * np.cumprod(scales))
    assert all(line["to"] < line["t"] for line in returns)
    handed_back = t.evaluate()["eval/reward"]
    assert handed_back >= t.run.evaluations[0]["eval/reward"]
    assert t.run.center == result.best_step
    if result.best_step == 0:
        assert "base model is handed back" in result.why
        assert weights(tmp_path / "run" / "checkpoint-best") == weights(tmp_path / "base")


def test_what_is_handed_back_is_replayed_and_exported(tmp_path, monkeypatch, capsys):
    """Rewards that fall when an evaluation finds them; the best center is one behind a return."""
    monkeypatch.setattr(guard, "MAX_STEP_KL", 1e9)
    verdicts = {2: 1, 3: -1, 5: 1}
    monkeypatch.setattr(best, "compare", lambda new, old, **_: verdicts.get(new.step, 0))
    monkeypatch.setattr(best, "replaces", lambda new, old, **_: verdicts.get(new.step, 0) > 0)
    t = guarded(tmp_path, learning_rate=0.05, max_steps=6, max_kl=1e9, save_steps=1)
    assert t.train().best_step == 5
    run = tmp_path / "run"
    journal, _ = Journal.read(run)
    assert [(r.t, r.to, r.scale) for r in journal.returns] == [(3, 2, 0.5)]
    assert [it.t for it in journal.trajectory(5)] == [1, 2, 4, 5]
    assert [it.t for it in journal.trajectory(3)] == [1, 2, 3]
    assert RunFolder(run).best() == 5
    handed_back = weights(run / "checkpoint-best")
    assert weights(run / "checkpoint-5") == handed_back != weights(run / "checkpoint-6")
    for until, checkpoint in (("best", "best"), (None, "best"), ("last", "6"), (3, "3"), (4, "4")):
        rebuild([load(run, until)]).save(tmp_path / f"again-{until}")
        assert weights(tmp_path / f"again-{until}") == weights(run / f"checkpoint-{checkpoint}"), until
    assert main(["export", str(run), "--patch", str(tmp_path / "p.seedtune")]) == 0
    assert main(["apply", str(tmp_path / "p.seedtune"), "--out", str(tmp_path / "applied")]) == 0
    assert weights(tmp_path / "applied") == handed_back
    assert load(tmp_path / "p.seedtune").steps == (1, 2, 4, 5)
    with pytest.raises(ConfigError, match="has iterations 1, 2, 4, 5"):
        load(tmp_path / "p.seedtune", 3)
    with pytest.raises(ConfigError, match="iterations 1 to 6"):
        load(run, 7)


def killed(whole, run, lines, *, evaluated):
    """A copy of a run's folder as it was when the journal had so many lines, before or after the evaluation there."""
    shutil.copytree(whole, run)
    text = (run / "journal.jsonl").read_text().splitlines(keepends=True)[:lines]
    (run / "journal.jsonl").write_text("".join(text))
    last = json.loads(text[-1]).get("t", 0)
    metrics = [line for line in read_lines(run / "metrics.jsonl") if line["step"] <= last]
    while not evaluated and "eval/reward" in metrics[-1]:
        del metrics[-1]
    write_lines(run / "metrics.jsonl", metrics)
    for checkpoint in RunFolder(run).checkpoints():
        if int(checkpoint.name.removeprefix("checkpoint-")) > last - (not evaluated):
            shutil.rmtree(checkpoint)


@pytest.mark.parametrize(
    "options", [{}, {"perturbation": "lowrank", "optimizer": "momentum", "master_dtype": "bfloat16", "save_steps": 2}]
)
def test_a_run_that_returned_resumes_to_the_same_bytes(tmp_path, options):
    options = {"learning_rate": 1.0, "max_steps": 4, "eval_steps": 2, **options}
    whole = guarded(tmp_path, "whole", **options)
    whole.train()
    lines = records(tmp_path / "whole")
    assert any(line["kind"] == "return" for line in lines)
    cuts = [(n, True) for n in range(1, len(lines))]
    cuts += [(n, False) for n in range(2, len(lines)) if lines[n - 1].get("t") in (2, 4) and "to" not in lines[n - 1]]
    for cut in cuts:
        run = tmp_path / "cut-{}-{}".format(*cut)
        killed(tmp_path / "whole", run, cut[0], evaluated=cut[1])
        t = guarded(tmp_path, run.name, **options)
        t.train(resume_from_checkpoint=True)
        assert journal_of(tmp_path, run.name) == journal_of(tmp_path, "whole"), cut
        assert without_times(t.run.history) == without_times(whole.run.history), cut
        assert t.recovery.guard._first["reward"] == whole.recovery.guard._first["reward"], cut
        for checkpoint in (tmp_path / "whole").glob("checkpoint-*"):
            assert weights(run / checkpoint.name) == weights(checkpoint), (cut, checkpoint.name)


def test_without_a_guard_the_journal_is_the_bare_one(tmp_path):
    guarded(tmp_path, "bare", learning_rate=1.0, guard=False).train()
    guarded(tmp_path, "best", learning_rate=1.0, guard=False, load_best_model_at_end=False).train()
    assert journal_of(tmp_path, "bare") == journal_of(tmp_path, "best")
    assert not any(line["kind"] == "return" for line in records(tmp_path / "bare"))
    assert not (tmp_path / "best" / "checkpoint-best").exists()
    with pytest.raises(JournalError, match="does not say which center was best"):
        load(tmp_path / "best", "best")


def test_weights_that_are_no_numbers_are_noticed(tmp_path):
    model = tiny_llama()
    t = trainer(tmp_path, model=model, max_steps=3, **ON)
    spoil = iter([False, True, False, False])
    update = t.engine.update

    def spoiled(*args):
        norm = update(*args)
        if next(spoil, False):
            for n in range(len(t.engine.center.master.weights)):
                t.engine.center.master.weights[n].fill_(float("nan"))
            t.engine.center.show_center()
        return norm

    t.engine.update = spoiled
    t.progress = notes = Notes()
    t.train()
    assert any("no numbers" in text for text in notes.texts)
    assert torch.isfinite(next(iter(model.parameters()))).all()


LINE = {
    "reward": 1.0, "es/reward_error": 0.01, "es/update_norm": 1.0, "completions/mean_length": 20.0,
    "completions/clipped_ratio": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"es/step_kl_measured": 0.6}, "one step moved the center by 0.6"),
        ({"es/step_kl_measured": float("nan")}, "no numbers"),
        ({"es/kl_measured": 1.5}, "the bound is 1"),
        ({"es/update_norm": float("inf")}, "not a finite number"),
        ({"completions/mean_length": 0.2}, "empty"),
        ({"completions/clipped_ratio": 0.97}, "97% of members' completions are cut off"),
    ],
)
def test_signs_of_divergence(change, why):
    watch = Guard(max_kl=1.0)
    assert watch.iteration(LINE) is None
    assert why in watch.iteration({**LINE, **change})


def test_rewards_that_fall_beyond_their_noise():
    watch = Guard(max_kl=1.0)
    rewards = [0.04, 0.05, 0.05, 0.05, 0.05, 0.027, 0.02, 0.008, 0.005, 0.004]
    found = [watch.iteration({**LINE, "reward": r, "es/reward_error": 0.006}) for r in rewards]
    assert found[:7] == [None] * 7
    assert any(found[7:])
    watch.forget_rewards()
    assert watch.iteration({**LINE, "reward": 0.004}) is None
    noisy = Guard(max_kl=1.0)
    assert not any(noisy.iteration({**LINE, "reward": r, "es/reward_error": 0.05}) for r in rewards)


def test_the_best_center_allows_for_noise():
    def center(step, values, kl, half=0.0):
        metrics = {"step": step, "eval/reward": sum(values) / len(values), "eval/kl": kl, "eval/kl_ci95": half}
        return best.candidate("eval/reward", metrics, [{"reward": v} for v in values])

    base = center(0, [0.0, 1.0, 0.0, 1.0, 0.0, 0.0], 0.0)
    assert not best.replaces(center(5, [0.0, 1.0, 1.0, 1.0, 0.0, 0.0], 0.1), base)  # one prompt more: chance
    better = center(5, [1.0, 1.0, 1.0, 1.0, 1.0, 0.0], 0.3)
    assert best.replaces(better, base)
    assert best.compare(base, better) == -1
    assert best.replaces(center(9, [1.0, 1.0, 1.0, 1.0, 0.0, 1.0], 0.2), better)  # as good, and nearer
    assert not best.replaces(center(9, [1.0, 1.0, 1.0, 1.0, 0.0, 1.0], 0.4), better)
    assert not best.replaces(center(9, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0], 0.28, 0.05), better)  # as near, and lower
    assert best.replaces(center(9, [1.0] * 6, 0.32, 0.05), better)  # as near, and higher
    assert not best.replaces(center(9, [1.0] * 6, 0.4, 0.05), better)  # further away
    assert best.replaces(center(1, [0.2], 0.1), center(0, [0.1], 0.0))  # one prompt: no noise to allow for
    assert best.more_is_better("eval/reward")
    assert not best.more_is_better("eval/kl")
    assert best.canonical(None) == best.canonical("eval_reward") == "eval/reward"


def test_metrics_that_evaluations_do_not_have(tmp_path):
    with pytest.raises(ConfigError, match=r"no metric 'eval/accuracy'; it has: eval/reward"):
        guarded(tmp_path, metric_for_best_model="accuracy").train()


def test_a_checkpoint_whenever_a_better_center_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(best, "compare", lambda new, old, **_: int(new.step == 2))
    saved = []
    t = guarded(tmp_path, save_strategy="best", learning_rate=0.02, guard=False)
    save = t.run.save_best
    monkeypatch.setattr(t.run, "save_best", lambda **how: saved.append(t.run.step) or save(**how))
    t.train()
    assert saved == [2, 3]  # when it was found, and at the end
    assert t.state.best_global_step == 2


def test_where_weights_are_subtracted_the_run_ends_where_it_is(tmp_path):
    t = guarded(tmp_path, restore="subtract", learning_rate=4.0, max_steps=6)
    why = t.train().why
    assert "Ended after iteration" in why
    assert not (tmp_path / "run" / "checkpoint-best").exists()


def test_settings_that_do_not_go_together(tmp_path):
    for bad, message in (
        ({"fitness_shaping": "pairs"}, "set antithetic: true"),
        ({"prompts_per_member": 2}, "set one of group, pairs"),
        ({"prompts_per_member": 3, "prompts_per_step": 2, "fitness_shaping": "group"}, "an iteration has 2"),
        ({"learning_rate": "auto", "prompts_per_step": 1}, "each needs two"),
        ({"learning_rate": "auto", "optimizer": "adam"}, "use sgd"),
        ({"antithetic": True, "population_size": 5}, "is odd"),
        ({"warmup_steps": 2}, "there is no warm-up"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type must be one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(tmp_path, **bad)
    with pytest.raises(ConfigError, match="the dataset has 4 prompts"):
        trainer(tmp_path, prompts_per_member=5, fitness_shaping="group")
    with pytest.raises(ConfigError, match="the dataset has one"):
        trainer(tmp_path, rows=ROWS[:1], learning_rate="auto")


def test_equal_and_missing_rewards_leave_the_weights_alone(tmp_path):
    def constant(value):
        return lambda completions, **_: [value] * len(completions)

    for name, value in (("equal", 1.0), ("none", None)):
        t = guarded(tmp_path, name, learning_rate="auto", reward_funcs=constant(value))
        t.train()
        assert {it.learning_rate for it in t.run.journal.iterations} == {0.0}
        assert weights(tmp_path / name / "checkpoint-best") == weights(tmp_path / "base")


def test_runs_of_before_have_no_guard(tmp_path):
    """A journal whose header does not say so was made without: it goes on as it began."""
    guarded(tmp_path, learning_rate=4.0, max_steps=2, guard=False).train()
    t = guarded(tmp_path, learning_rate=4.0, max_steps=4)
    t.train(resume_from_checkpoint=True)
    assert not t.run.journal.returns
