"""The trainer, end to end on a tiny model: it learns, repeats, resumes, stops, saves, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from runs import ROWS, Notes, journal_of, letters, quiet_length, trainer, without_times
from seedtune import ESTrainer
from seedtune.config.yaml_file import read
from seedtune.errors import ConfigError, DataError, JournalError, RewardError, RunFolderError, SaveError
from seedtune.journal.folder import RunFolder
from seedtune.report.progress import Progress
from seedtune.rewards.metric_names import COLUMNS, check_metric
from seedtune.utils.files import read_lines
from tiny import tiny_llama, tiny_tokenizer


def test_it_learns(tmp_path):
    t = trainer(tmp_path, max_steps=20, population_size=16, learning_rate=0.1, antithetic=True, eval_steps=5)
    t.train()
    first, last = t.run.evaluations[0]["eval/reward"], t.run.evaluations[-1]["eval/reward"]
    assert last > first + 0.2


def test_without_args_a_run_measures_its_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # output_dir is `out` then
    it = ESTrainer(tiny_llama(context=512), letters, train_dataset=ROWS, processing_class=tiny_tokenizer())
    assert it.args.perturbation == "lowrank"
    assert it.args.population_size == 64
    assert "auto" in (it.args.sigma, it.args.learning_rate)


def test_what_a_run_leaves_behind(tmp_path):
    result = trainer(tmp_path, log_completions=True, save_steps=1, save_total_limit=2).train()
    out = tmp_path / "run"
    assert (result.global_step, result.interrupted) == (3, False)
    assert {p.name for p in out.iterdir()} == {
        ".lock", "config.resolved.yaml", "environment.json", "journal.jsonl", "metrics.jsonl", "completions",
        "checkpoint-2", "checkpoint-3",
    }  # fmt: skip
    lines = read_lines(out / "metrics.jsonl")
    assert [(line["step"], "eval/reward" in line) for line in lines] == [
        (0, True), (1, False), (2, False), (2, True), (3, False), (3, True),
    ]  # fmt: skip
    assert {
        "reward", "reward_std", "rewards/letters/mean", "rewards/letters/std", "completions/mean_length", "num_tokens",
        "es/update_norm", "es/sigma", "time/perturb", "time/generate", "time/score", "learning_rate",
    } <= set(lines[1])  # fmt: skip
    assert lines[4]["num_tokens"] > lines[1]["num_tokens"] > 0
    rows = read_lines(out / "completions" / "train-1.jsonl")
    assert len(rows) == 4 * len(ROWS)
    assert rows[0]["prompt"] == "one"
    assert rows[0]["reward"] == rows[0]["letters"]
    assert read(out / "config.resolved.yaml")["generation_batch_size"] == 128
    card = (out / "checkpoint-3" / "README.md").read_text()
    assert "The center after iteration 3 of Evolution Strategies" in card
    assert json.loads((out / "environment.json").read_text())["software"]["torch"]


def test_a_master_beside_the_weights_gives_the_same_run(tmp_path, monkeypatch):
    """As on a GPU: torch holds the master and does the arithmetic; without room for it, on the host."""
    from seedtune.perturb import center, master

    class Said(Progress):
        def begin(self, facts, first, max_steps):
            self.facts = dict(facts)

    trainer(tmp_path, optimizer="adam").train()
    expected = (tmp_path / "run" / "journal.jsonl").read_bytes()
    monkeypatch.setattr(center, "CpuMaster", master.DeviceMaster)
    for room, says in ((1e9, None), (0, master.MASTER_ON_HOST)):
        monkeypatch.setattr(master, "free_memory", lambda device, room=room: room)
        said = Said()
        trainer(tmp_path, optimizer="adam", output_dir=str(tmp_path / f"room-{room:g}"), progress=said).train()
        assert said.facts.get("engine") == says
        assert (tmp_path / f"room-{room:g}" / "journal.jsonl").read_bytes() == expected


def test_the_checkpoint_answers_as_the_center(tmp_path):
    t = trainer(tmp_path, eval_funcs=[quiet_length])
    t.train()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-3")
    again = trainer(tmp_path, model=loaded, output_dir=str(tmp_path / "other"), eval_funcs=[quiet_length])
    measured = again.evaluate()
    assert measured == {k: v for k, v in t.run.evaluations[-1].items() if k in measured}
    assert "eval/quiet_length" in measured


def test_evaluations_say_how_far_the_model_moved(tmp_path):
    t = trainer(tmp_path, perturbation="lowrank")
    t.train()
    first, last = t.run.evaluations[0], t.run.evaluations[-1]
    assert (first["eval/kl"], first["eval/distance"]) == (0, 0)
    assert last["eval/kl"] > 0
    assert last["eval/distance"] > 0
    assert last["eval/perplexity"] != first["eval/perplexity"]
    trainer(tmp_path, perturbation="lowrank", output_dir=str(tmp_path / "b"), drift_samples=0).train()
    assert journal_of(tmp_path) == journal_of(tmp_path, "b"), "looking changes nothing"
    assert "eval/kl" not in read_lines(tmp_path / "b" / "metrics.jsonl")[0]


def rises(completions, trainer_state, **kwargs):
    return [len(c) / 100 + trainer_state.global_step for c in completions]


def falls(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step < 2) for _ in completions]


def test_a_truth_that_falls_while_the_reward_rises_is_said_and_can_end_the_run(tmp_path):
    notes = Notes()
    t = trainer(
        tmp_path, reward_funcs=rises, eval_funcs=[falls], progress=notes, max_steps=5, eval_steps=1,
        stop_at=["eval/hacked > 0"],
    )  # fmt: skip
    result = t.train()
    assert result.why.startswith("Ended after iteration 2 by the rule `eval/hacked > 0`")
    assert [line["eval/hacked"] for line in t.run.evaluations] == [0, 0, 1]
    assert any("the reward may be hacked: it rose from" in text and "falls fell from 1 to 0" in text
               for text in notes.texts)  # fmt: skip


def test_two_runs_are_the_same_to_the_last_bit(tmp_path):
    for name in ("a", "b"):
        trainer(tmp_path, output_dir=str(tmp_path / name)).train()
    assert journal_of(tmp_path, "a") == journal_of(tmp_path, "b")
    files = [(tmp_path / name / "checkpoint-3" / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    trainer(tmp_path, output_dir=str(tmp_path / "c"), seed=1).train()
    assert journal_of(tmp_path, "c") != journal_of(tmp_path, "a")


@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "anchor_decay": 0.1, "prompts_per_step": 2}])
def test_resuming_gives_the_same_bits(tmp_path, options):
    trainer(tmp_path, output_dir=str(tmp_path / "whole"), max_steps=5, **options).train()
    trainer(tmp_path, max_steps=2, **options).train()
    notes = Notes()
    trainer(tmp_path, max_steps=5, progress=notes, **options).train(resume_from_checkpoint=True)
    assert "Resumed after iteration 2" in notes.texts[0]
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
    for name in ("checkpoint-5/model.safetensors", "completions/eval-5.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    metrics = [without_times(read_lines(tmp_path / name / "metrics.jsonl")) for name in ("run", "whole")]
    assert metrics[0] == metrics[1]


def test_resuming_after_a_torn_line_and_half_written_metrics(tmp_path):
    trainer(tmp_path, output_dir=str(tmp_path / "whole")).train()
    trainer(tmp_path).train()
    path = tmp_path / "run" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    with (tmp_path / "run" / "metrics.jsonl").open("a") as f:
        f.write('{}\n{"step": 3, "rew')
    notes = Notes()
    trainer(tmp_path, progress=notes).train(resume_from_checkpoint=True)
    assert "incomplete" in notes.texts[0]
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
    metrics = [without_times(read_lines(tmp_path / name / "metrics.jsonl")) for name in ("run", "whole")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_damaged_journal_names_the_line(tmp_path, line):
    trainer(tmp_path).train()
    path = tmp_path / "run" / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[line] = (
        lines[line].replace("0x1", "0x2", 1) if line else lines[line].replace("tiny", "tinz").replace("4", "5")
    )
    path.write_text("".join(lines))
    with pytest.raises(JournalError, match=f"line {line + 1} is damaged"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_forged_coefficient_is_caught_by_the_digest(tmp_path):
    from seedtune.journal.record import ROOT, seal

    trainer(tmp_path, save_only_model=True).train()
    path, chain, forged = tmp_path / "run" / "journal.jsonl", ROOT, ""
    for line in read_lines(path):
        del line["chain"]
        if line.get("t") == 2:
            line["coefficients"][0] = (2 * float.fromhex(line["coefficients"][0])).hex()
        text, chain = seal(line, chain)
        forged += text
    path.write_text(forged)
    with pytest.raises(JournalError, match="after iteration 2"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_learning_setting_or_another_model_is_refused_on_resume(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    with pytest.raises(JournalError, match=r"sigma = 0.05 and would go on with 0.1"):
        trainer(tmp_path, sigma=0.1).train(resume_from_checkpoint=True)
    with pytest.raises(JournalError, match="digest"):
        trainer(tmp_path, model=tiny_llama(seed=9)).train(resume_from_checkpoint=True)


def test_the_same_trainer_goes_on_after_an_interrupt(tmp_path):
    trainer(tmp_path, output_dir=str(tmp_path / "whole")).train()
    t = trainer(tmp_path, progress=Interrupting((1, 2)))
    t.train()
    t.train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")


def test_resuming_somewhere_else_is_refused(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    with pytest.raises(RunFolderError, match="set output_dir"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "other"))
    trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_other_training_data_is_refused_on_resume(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    with pytest.raises(JournalError, match="data = "):
        trainer(tmp_path, rows=[*ROWS[:3], {"prompt": "five", "target": "e"}]).train(resume_from_checkpoint=True)


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    class Second(Progress):
        said = ""

        def iteration(self, step, metrics, sample):
            with pytest.raises(RunFolderError, match=rf"in use by process {os.getpid()} on ") as e:
                trainer(tmp_path).train(resume_from_checkpoint=True)
            self.said = str(e.value)

    second = Second()
    trainer(tmp_path, progress=second, max_steps=1).train()
    assert second.said
    trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_run_that_never_got_going_can_be_started_again(tmp_path):
    with pytest.raises(ConfigError, match="no metric"):
        trainer(tmp_path, stop_at=["eval/truth < 1"]).train()
    (tmp_path / "run" / ".checkpoint-1.7.tmp").mkdir()
    trainer(tmp_path).train()
    assert not list((tmp_path / "run").glob(".checkpoint*"))
    trainer(tmp_path, output_dir=str(tmp_path / "whole")).train()
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")


def test_an_interrupt_before_the_first_iteration_is_done_can_be_resumed(tmp_path):
    trainer(tmp_path, output_dir=str(tmp_path / "whole")).train()
    assert trainer(tmp_path, progress=Interrupting((1, 2), (1, 4))).train().global_step == 0
    trainer(tmp_path).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")


def test_a_rule_that_ended_a_run_ends_its_resume(tmp_path):
    rule = {"eval_steps": 1, "stop_at": ["eval/reward >= -1"]}
    trainer(tmp_path, max_steps=5, **rule).train()
    result = trainer(tmp_path, max_steps=5, **rule).train(resume_from_checkpoint=True)
    assert (result.global_step, "by the rule" in result.why) == (1, True)


def test_an_update_that_the_journal_does_not_hold_is_said(tmp_path, monkeypatch):
    t = trainer(tmp_path)

    def fails(iteration):
        raise SaveError("disk")

    real = t.run.record
    monkeypatch.setattr(t.run, "record", lambda it, *more: real(it, *more) if it.t == 1 else fails(it))
    with pytest.raises(SaveError):
        t.train()
    with pytest.raises(JournalError, match="make a new trainer"):
        t.train(resume_from_checkpoint=True)
    trainer(tmp_path).train(resume_from_checkpoint=True)


def test_what_a_function_logs_stands_beside_what_was_measured(tmp_path):
    def logs(completions, log_extra, log_metric, **kwargs):
        log_extra("note", ["y"] * len(completions))
        log_metric("mine/too", 2)
        return [float(len(c)) for c in completions]

    t = trainer(tmp_path, reward_funcs=logs, max_steps=1)
    t.train()
    row = read_lines(tmp_path / "run" / "completions" / "eval-1.jsonl")[0]
    assert (type(row["reward"]), row["note"]) == (float, "y")
    assert t.run.evaluations[-1]["eval/mine/too"] == t.run.history[1]["mine/too"] == 2


@pytest.mark.parametrize("name", ["reward", "eval/reward", "kl", "quiet_length"])
def test_what_a_function_logs_cannot_replace_what_was_measured(tmp_path, name):
    """Neither the metric that a rule obeys, nor that of a function beside it."""

    def logs(completions, log_metric, **kwargs):
        log_metric(name, 99.0)
        return [float(len(c)) for c in completions]

    with pytest.raises(RewardError, match=rf"log_metric\('{name}', \.\.\.\).*Give it another name"):
        trainer(tmp_path, reward_funcs=logs, eval_funcs=[quiet_length], stop_at=["eval/reward > 98"]).train()


def test_every_metric_that_a_run_measures_is_reserved(tmp_path):
    t = trainer(tmp_path, eval_funcs=[quiet_length])
    t.train()
    names = {name.removeprefix("eval/") for line in t.run.history for name in line} - {"quiet_length"}
    for name in names:
        with pytest.raises(ValueError, match="the run itself"):
            check_metric(name, ())
    of_one_sample = COLUMNS - {"sample", "prompt_reward"}  # those are of num_generations > 1
    of_one_sample -= {"messages"}  # of conversations with tools
    assert set(read_lines(tmp_path / "run/completions/eval-3.jsonl")[0]) == of_one_sample | {"letters", "quiet_length"}


def test_functions_of_one_name_have_weights_and_metrics_of_their_own(tmp_path):
    functions = [partial(scaled, by=1.0), partial(scaled, by=10.0)]
    options = {"reward_funcs": functions, "reward_weights": [1.0, 0.1], "eval_funcs": [partial(scaled, by=2.0)]}
    trainer(tmp_path, max_steps=1, **options).train()
    t = trainer(tmp_path, max_steps=2, **options)
    t.train(resume_from_checkpoint=True)
    line = t.run.evaluations[-1]
    one = line["eval/rewards/scaled/mean"]
    assert line["eval/rewards/scaled_2/mean"] == pytest.approx(10 * one)
    assert line["eval/reward"] == pytest.approx(2 * one)
    assert line["eval/scaled_3"] == pytest.approx(2 * one)


def scaled(completions, by, **kwargs):
    return [by * len(c) for c in completions]


def test_a_function_called_reward_leaves_the_total_its_column(tmp_path):
    def reward(completions, **kwargs):
        return [float(len(c)) for c in completions]

    trainer(tmp_path, reward_funcs=reward, reward_weights=[3.0], eval_funcs=[reward], max_steps=1,
            metric_for_best_model="rewards/reward/mean", guard=True).train()  # fmt: skip
    row = read_lines(tmp_path / "run" / "completions" / "eval-1.jsonl")[0]
    assert row["reward"] == 3 * row["rewards/reward"] == 3 * row["reward_2"]


def test_rewards_that_overflow(tmp_path):
    with pytest.raises(RewardError, match="scale them down"):
        trainer(tmp_path, reward_funcs=[letters, lambda completions, **k: [1e308] * len(completions)],
                reward_weights=[1, 100]).train()  # fmt: skip
    with pytest.raises(RewardError, match=r"beyond 1e\+100\): scale them down"):
        trainer(tmp_path, output_dir=f"{tmp_path}/b", reward_funcs=lambda completions, **k: [-1e200] * len(completions),
                ).train()  # fmt: skip


def test_another_run_is_never_overwritten(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    before = journal_of(tmp_path)
    with pytest.raises(RunFolderError, match=r"holds another run.*--resume"):
        trainer(tmp_path).train()
    assert journal_of(tmp_path) == before
    with pytest.raises(RunFolderError, match="no run to resume"):
        trainer(tmp_path, output_dir=str(tmp_path / "empty")).train(resume_from_checkpoint=True)


def test_an_output_dir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="cannot write into"):
        trainer(tmp_path, output_dir=str(tmp_path / "file" / "run")).train()


def test_a_place_that_cannot_be_a_folder_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place, says in [
        (tmp_path / "file", "file is a file"),
        (tmp_path / "file" / "run", "file is a file"),
        (tmp_path / "link", "link is a link that leads nowhere"),
        ("a" * 300, "cannot be a folder: File name too long"),
        ("a\0b", "cannot be a folder: embedded null"),
    ]:
        with pytest.raises(RunFolderError, match=says):
            RunFolder(place).check(resume=False)
    RunFolder(tmp_path / "new" / "run").check(resume=False)


class Does(TrainerCallback):
    def __init__(self, what):
        self.what = what

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.what()


def test_a_run_stays_where_it_is_wherever_the_process_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = trainer(tmp_path, output_dir="run", callbacks=[Does(partial(os.chdir, "/"))])
    assert t.train().global_step == 3
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
    assert t.run.folder.given == Path("run")


@pytest.mark.parametrize(("taken", "says"), [("", "metrics.jsonl: No such file"), ("journal.jsonl", "is gone: it was")])
def test_a_run_whose_folder_or_journal_is_taken_away(tmp_path, taken, says):
    place, away = tmp_path / "run" / taken, tmp_path / "away"
    with pytest.raises(SaveError, match=says) as e:
        trainer(tmp_path, eval_steps=0, callbacks=[Does(partial(place.rename, away))]).train()
    assert not getattr(e.value, "__notes__", [])
    away.rename(place)
    assert trainer(tmp_path, eval_steps=0).train(resume_from_checkpoint=True).global_step == 3


def test_other_rewards_than_before_are_noticed(tmp_path, caplog):
    trainer(tmp_path, max_steps=1).train()
    trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True)
    assert "the rewards were" not in caplog.text
    trainer(tmp_path, max_steps=3, reward_funcs=quiet_length).train(resume_from_checkpoint=True)
    assert "Up to iteration 2 the rewards were letters, from now on quiet_length." in caplog.text


@pytest.mark.parametrize("name", ["checkpoint-500", "checkpoint-best", "base", "metrics.jsonl"])
def test_what_others_left_in_the_folder_is_not_overwritten(tmp_path, name):
    """As of a run of GRPO with the same output_dir, or a model beside it."""
    theirs = tmp_path / "run" / name
    if name == "metrics.jsonl":
        theirs.parent.mkdir()
        theirs.write_text("theirs")
    else:
        theirs.mkdir(parents=True)
        (theirs / "model.safetensors").write_text("theirs")
    with pytest.raises(RunFolderError, match=f"run holds {name}, which a run would overwrite, and no journal"):
        trainer(tmp_path, save_total_limit=1).train()
    assert "theirs" in "".join(p.read_text() for p in (tmp_path / "run").rglob("*") if p.is_file())
    (tmp_path / "run" / "notes.txt").write_text("mine")
    theirs.rename(tmp_path / "away")
    trainer(tmp_path, max_steps=1).train()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_only_a_full_disk_wants_room(tmp_path):
    t = trainer(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match=r"Not a directory\. .*: look at that place, or choose another one"):
        t.save_model(tmp_path / "file")


@pytest.mark.parametrize("value", [1, True, np.bool_(True)])
def test_what_says_that_a_run_is_resumed(tmp_path, value):
    trainer(tmp_path, max_steps=1).train()
    assert trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=value).global_step == 2


def test_equal_rewards_leave_the_weights_and_warn(tmp_path):
    def same(completions, **kwargs):
        return [0.3] * len(completions)

    notes = Notes()
    t = trainer(tmp_path, reward_funcs=same, max_steps=1, progress=notes)
    digest = t.fleet.digest()
    t.train()
    assert t.fleet.digest() == digest
    assert any("all members earned the same reward" in text for text in notes.texts)


def test_several_rewards_weights_and_none(tmp_path):
    def sometimes(completions, **kwargs):
        return [None if n % 2 else 1.0 for n in range(len(completions))]

    t = trainer(tmp_path, reward_funcs=[letters, sometimes], reward_weights=[2.0, 0.5], max_steps=1)
    with t._scorer(evaluation=True) as scorer:
        state = t.events.trainer_state()
        rollouts, metrics = t.center.rewarded(scorer, t.schedule.final_weights, state, t.progress.rows)
    letters_P, sometimes_P = rollouts.rewards_F_M_P_G[:, 0, :, 0]
    assert list(sometimes_P == sometimes_P).count(True) == 2
    expected = [2 * a + (0.5 * b if b == b else 0) for a, b in zip(letters_P, sometimes_P, strict=True)]
    assert rollouts.total_M_P(t.schedule.weights)[0] == pytest.approx(expected)
    assert metrics["eval/rewards/sometimes/mean"] == 1
    with pytest.raises(ConfigError, match="reward_weights has 1 numbers for 2"):
        trainer(tmp_path, reward_funcs=[letters, sometimes], reward_weights=[1.0])


def test_completions_that_every_function_leaves_out(tmp_path):
    def first_only(completions, target, **kwargs):
        return [float(len(completions[0]))] + [None] * (len(completions) - 1)

    trainer(tmp_path, reward_funcs=first_only, max_steps=1).train()
    rows = read_lines(tmp_path / "run" / "completions" / "eval-1.jsonl")
    assert [row["reward"] is None for row in rows].count(True) == 3


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_rule_ends_the_run(tmp_path):
    result = trainer(tmp_path, max_steps=9, eval_steps=1, stop_at=["eval/reward >= -1"]).train()
    assert result.global_step == 1
    assert "by the rule `eval/reward >= -1`" in result.why


def test_a_rule_on_a_metric_that_is_not_there_says_which_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no metric 'eval/truth'; it has: eval/reward"):
        trainer(tmp_path, stop_at=["eval/truth < 1"]).train()


class Recorder(TrainerCallback):
    def __init__(self):
        self.events, self.logs = [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append("begin")
        assert kwargs["model"] is not None
        assert args.population_size == 4

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(f"step {state.global_step}/{state.max_steps}")
        if state.global_step == 2:
            control.should_training_stop = True
            control.should_save = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(logs)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.events.append("evaluate")

    def on_save(self, args, state, control, **kwargs):
        self.events.append("save")

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append("end")


def test_transformers_callbacks_see_the_state_and_steer(tmp_path):
    recorder = Recorder()
    result = trainer(tmp_path, max_steps=9, callbacks=[recorder]).train()
    assert recorder.events == ["begin", "evaluate", "step 1/9", "step 2/9", "evaluate", "save", "end"]
    assert "eval_reward" in recorder.logs[0]
    assert "reward" in recorder.logs[1]
    assert "callback" in result.why


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    trainer(tmp_path, report_to="tensorboard", max_steps=1).train()
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_a_reporter_that_is_not_installed(tmp_path, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: False)
    with pytest.raises(ConfigError, match="pip install trackio"):
        trainer(tmp_path, report_to="trackio")


class Interrupting(Progress):
    """Sends this process a SIGINT in the iterations, and after so many of their rows, that `at` gives."""

    def __init__(self, *at):
        super().__init__()
        self.at, self.summary = list(at), None

    def rows(self, done, total, new_tokens):
        if total > len(ROWS) and self.at and (self.step + 1, done) >= self.at[0]:
            del self.at[0]
            os.kill(os.getpid(), signal.SIGINT)

    def finish(self, summary):
        self.summary = summary


def test_ctrl_c_finishes_the_iteration_saves_and_says_how_to_go_on(tmp_path):
    progress = Interrupting((1, 2))
    result = trainer(tmp_path, max_steps=9, progress=progress).train()
    assert result.interrupted
    assert result.global_step == 1
    assert (tmp_path / "run" / "checkpoint-1" / "model.safetensors").exists()
    assert any("resume" in command for command in progress.summary.next_commands)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_drops_the_iteration_and_resume_repeats_it(tmp_path):
    trainer(tmp_path, output_dir=str(tmp_path / "whole")).train()
    result = trainer(tmp_path, progress=Interrupting((2, 2), (2, 4))).train()
    assert result.interrupted
    assert result.global_step == 1
    trainer(tmp_path).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "says"),
    [([], "is empty"), ([{"question": "a"}], "no column 'prompt'"), ("text", "must be a list"), (None, "is missing")],
)
def test_bad_datasets(tmp_path, rows, says):
    with pytest.raises(DataError, match=says):
        trainer(tmp_path, rows=rows)
    assert not (tmp_path / "run").exists()


def test_bad_rewards_before_anything_is_written(tmp_path):
    with pytest.raises(RewardError, match="requires 'target'"):
        trainer(tmp_path, rows=[{"prompt": "a"}])
    with pytest.raises(RewardError, match="reward_funcs is empty"):
        trainer(tmp_path, reward_funcs=[])
    with pytest.raises(RewardError, match="callable"):
        trainer(tmp_path, reward_funcs=[5])
    with pytest.raises(ConfigError, match="prompts_per_step is 9, but the dataset has 4"):
        trainer(tmp_path, prompts_per_step=9)
    assert not (tmp_path / "run").exists()


def test_sum_shaping_with_negative_rewards(tmp_path):
    with pytest.raises(ConfigError, match="never negative"):
        trainer(tmp_path, reward_funcs=lambda completions, **k: [-1.0 - len(c) for c in completions],
                fitness_shaping="sum").train()  # fmt: skip


def test_a_reward_that_breaks_in_the_middle_loses_nothing(tmp_path):
    calls = []

    def breaks(completions, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise OSError("gone")
        return [float(len(c)) for c in completions]

    with pytest.raises(RewardError, match="raised OSError: gone"):
        trainer(tmp_path, reward_funcs=breaks).train()
    trainer(tmp_path, output_dir=str(tmp_path / "whole"), reward_funcs=quiet_length).train()
    assert journal_of(tmp_path) == b"".join(journal_of(tmp_path, "whole").splitlines(keepends=True)[:2])


def test_a_full_disk_while_saving(tmp_path, monkeypatch):
    t = trainer(tmp_path, save_steps=2)
    save, saved = t.engine.save, []

    def full(folder):
        save(folder)
        saved.append(folder)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(t.engine, "save", full)
    with pytest.raises(SaveError, match=r"checkpoint-3: No space left on device.*--resume"):
        t.train()
    assert [p.name for p in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-2"]
    trainer(tmp_path).train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


def test_a_full_disk_while_journaling(tmp_path, monkeypatch):
    from seedtune.journal import store

    t = trainer(tmp_path)
    real = os.fsync
    counted = []

    def full(descriptor):
        counted.append(1)
        if len(counted) == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(SaveError, match="No space left"):
        t.train()
    monkeypatch.undo()
    trainer(tmp_path, output_dir=str(tmp_path / "whole")).train()
    trainer(tmp_path).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")


def test_save_model(tmp_path):
    t = trainer(tmp_path)
    t.save_model(str(tmp_path / "here"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "here")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), tiny_llama().parameters(), strict=True))


# --- checkpoints as a shortcut ----------------------------------------------------------------------------------------


def test_a_resume_starts_from_the_newest_checkpoint_that_holds_the_state(tmp_path, monkeypatch):
    options = {"save_steps": 2, "optimizer": "adam", "max_steps": 7}
    trainer(tmp_path, output_dir=str(tmp_path / "whole"), **options).train()
    trainer(tmp_path, **{**options, "max_steps": 5}).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-5")
    t = trainer(tmp_path, **options)
    updates, plain = [], t.fleet.update
    monkeypatch.setattr(t.fleet, "update", lambda n, *rest: updates.append(n) or plain(n, *rest))
    t.train(resume_from_checkpoint=True)
    assert updates == [5, 6, 7]
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
    states = [(tmp_path / name / "checkpoint-6/state.safetensors").read_bytes() for name in ("run", "whole")]
    assert states[0] == states[1]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-9] + bytes(9), lambda data: b""])
def test_a_checkpoint_whose_state_is_damaged_is_passed_over(tmp_path, damage):
    trainer(tmp_path, output_dir=str(tmp_path / "whole"), max_steps=4).train()
    trainer(tmp_path).train()
    state = tmp_path / "run/checkpoint-3/state.safetensors"
    state.write_bytes(damage(state.read_bytes()))
    notes = Notes()
    trainer(tmp_path, max_steps=4, progress=notes).train(resume_from_checkpoint=True)
    assert any("was ignored" in text for text in notes.texts)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")


def test_save_only_model_leaves_no_state(tmp_path):
    trainer(tmp_path, save_only_model=True).train()
    assert not list((tmp_path / "run").rglob("state.safetensors"))
