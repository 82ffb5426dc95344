"""Prompts of members' own, steps that the run chooses, schedules: journaled, replayed, resumed to the same bytes."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from runs import journal_of, plain, trainer, weights
from seedtune.cli.main import main
from seedtune.errors import ConfigError, JournalError
from seedtune.es.population import Population, assign_prompts
from seedtune.journal.store import Journal
from seedtune.training import step_control
from seedtune.training.preflight import judge
from seedtune.training.recipe import resolve
from seedtune.training.replay import load, rebuild
from seedtune.utils.files import read_lines
from tiny import save_tiny

ROWS = [{"prompt": text} for text in ("one", "two and", "three", "four is", "five", "six as")]
OWN = {"antithetic": True, "population_size": 8, "fitness_shaping": "pairs", "prompts_per_member": 2}


def made(tmp_path, name, **options):
    base = tmp_path / "base"
    if not base.exists():
        save_tiny(base, dtype=torch.float32)
    how = {**OWN, "reward_funcs": plain, **options}
    return trainer(tmp_path, rows=ROWS, model=str(base), output_dir=str(tmp_path / name), **how)


@pytest.mark.parametrize("perturbation", ["full", "lowrank"])
@pytest.mark.parametrize("prompts_per_step", [None, 3])
def test_members_answer_prompts_of_their_own(tmp_path, perturbation, prompts_per_step):
    how = {"perturbation": perturbation, "prompts_per_step": prompts_per_step, "log_completions": True}
    t = made(tmp_path, "run", **how)
    t.train()
    members = Population(8, antithetic=True).ask(1)
    for it in t.run.journal.iterations:
        assert len(it.prompts) == (prompts_per_step or 4)  # each answered by two of 4 pairs
        assert len(it.rewards_M) == 8
        rows = read_lines(tmp_path / "run" / "completions" / f"train-{it.t}.jsonl")
        asked = {(row["member"], row["prompt_index"]) for row in rows}
        own = assign_prompts(members, len(it.prompts), 2)
        assert asked == {(m, it.prompts[place]) for m, places in enumerate(own) for place in places}
        assert len(rows) == 16
        mean = np.mean([row["reward"] for row in rows if row["member"] == 3])
        assert it.rewards_M[3] == pytest.approx(mean)
        pairs = (it.coefficients_M[0::2] + it.coefficients_M[1::2]).astype(float)
        assert np.sum(pairs**2) == pytest.approx(2 / 8 if pairs.any() else 0.0, rel=1e-5)  # unit RMS
    rows = [row for n in (1, 2, 3) for row in read_lines(tmp_path / "run" / "completions" / f"train-{n}.jsonl")]
    ids = [len(prompt.ids) for prompt in t.engine.encode([row["prompt"] for row in rows], 12)]
    assert t.run.tokens == sum(ids) + sum(row["tokens"] for row in rows)  # of what was asked, nothing else
    made(tmp_path, "cut", max_steps=2, **how).train()
    made(tmp_path, "cut", **how).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path, "cut") == journal_of(tmp_path, "run")


@pytest.mark.parametrize("sigma", ["auto", 0.05])
def test_steps_that_the_run_chooses_resume_and_replay_to_the_same_bytes(tmp_path, sigma, monkeypatch):
    monkeypatch.setattr(step_control, "_COSTLY", 0.0)  # so that sigma changes
    how = {"sigma": sigma, "learning_rate": "auto", "max_steps": 6, "eval_steps": 2, "guard": True}
    t = made(tmp_path, "whole", **how)
    t.train()
    journal, _ = Journal.read(tmp_path / "whole")
    rates = [it.learning_rate for it in journal.iterations]
    assert len(set(rates)) > 2
    assert all(rate >= 0 for rate in rates)
    sigmas = [it.control["sigma"] for it in journal.iterations]
    assert (len(set(sigmas)) > 1) == (sigma == "auto")
    kls = [line["es/step_kl"] for line in t.run.history if "es/step_kl" in line]
    assert max(kls) < 0.5
    for done in (2, 3):
        made(tmp_path, f"cut-{done}", **how).train()
        lines = (tmp_path / f"cut-{done}" / "journal.jsonl").read_text().splitlines(keepends=True)
        iterations = [n for n, line in enumerate(lines) if json.loads(line).get("t") == done]
        (tmp_path / f"cut-{done}" / "journal.jsonl").write_text("".join(lines[: iterations[0] + 1]))
        made(tmp_path, f"cut-{done}", **how).train(resume_from_checkpoint=True)
        assert journal_of(tmp_path, f"cut-{done}") == journal_of(tmp_path, "whole"), done
    rebuild([load(tmp_path / "whole", "last")]).save(tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "whole" / "checkpoint-6")


@pytest.mark.parametrize("distance", [9.0, math.nan])
def test_a_step_behind_a_return_has_room_again(tmp_path, monkeypatch, distance):
    """The center that was left was far away, or no numbers: that says nothing of the one that the run returned to."""
    measure = step_control.StepMeter.after_step
    first = [distance]
    monkeypatch.setattr(
        step_control.StepMeter, "after_step", lambda self: (measure(self)[0], first.pop() if first else 0.0)
    )
    how = {"learning_rate": "auto", "guard": True, "eval_steps": 0, "perturbation": "lowrank"}
    made(tmp_path, "whole", **how).train()
    journal, _ = Journal.read(tmp_path / "whole")
    assert [r.t for r in journal.returns] == [1]
    assert 0 < journal.iterations[1].learning_rate < 1
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    lines = (tmp_path / "cut" / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "journal.jsonl").write_text("".join(lines[:3]))
    made(tmp_path, "cut", **how).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path, "cut") == journal_of(tmp_path, "whole")


def test_always_on_metrics(tmp_path):
    t = made(tmp_path, "run", guard=True, max_steps=2, eval_steps=1)
    t.train()
    lines = [line for line in t.run.history if "reward" in line]
    for line in lines:
        assert -1 <= line["es/mirrored_correlation"] <= 1
        assert line["es/reliability_error"] >= 0
        assert line["es/step_kl"] > 0
        assert line["es/step_kl_measured"] == pytest.approx(line["es/step_kl"], rel=4)
    evaluations = t.run.evaluations
    assert evaluations[1]["es/noise_cost"] == pytest.approx(evaluations[1]["eval/reward"] - lines[0]["reward"])
    assert "es/noise_cost" not in evaluations[0]


def test_schedules_are_journaled_and_fix_max_steps(tmp_path):
    how = {"lr_scheduler_type": "linear", "warmup_steps": 1, "sigma_schedule": "cosine", "learning_rate": 0.08}
    t = made(tmp_path, "run", max_steps=4, **how)
    t.train()
    assert [it.learning_rate for it in t.run.journal.iterations] == pytest.approx([0.04, 0.08, 0.08 * 2 / 3, 0.08 / 3])
    sigmas = [line["es/sigma"] for line in t.run.history if "es/sigma" in line]
    assert sigmas == pytest.approx([0.05 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)])
    with pytest.raises(JournalError, match="max_steps = 4 and would go on with 6"):
        made(tmp_path, "run", max_steps=6, **how).train(resume_from_checkpoint=True)


def test_a_run_that_says_nothing_of_steps_chooses_them():
    names = ("sigma", "learning_rate", "fitness_shaping", "prompts_per_member")
    auto, said = resolve({"task": "conciseness"}, {}), resolve({"task": "conciseness", "sigma": 0.01}, {})
    assert [getattr(auto, name) for name in names] == ["auto", "auto", "pairs", 2]
    assert [getattr(said, name) for name in names] == [0.01, None, "zscore", None]


def rewards(signal, noise, pairs=16, prompts=8):
    random = np.random.default_rng(3)
    odd = random.normal(0, math.sqrt(signal), (pairs, 1)) + random.normal(0, math.sqrt(noise), (pairs, prompts))
    return np.stack([odd, -odd], axis=1).reshape(2 * pairs, prompts)


def test_preflight_judges_by_what_other_prompts_would_show():
    center = np.zeros(8)
    learns = judge(rewards(1.0, 1.0), center, 0.01, 0.1, 9.0)
    assert learns.verdict == "will learn"
    assert learns.settings["population_size"] == 64
    assert 0.5 < learns.reliability < 0.8  # 2/3 on two prompts
    noisy = judge(rewards(0.01, 1.0), center, 0.01, 0.1, 9.0)
    assert noisy.verdict != "will learn"
    assert noisy.gain < learns.gain
    equal = judge(np.ones((32, 8)), np.ones(8), 0.01, 0.1, 9.0)
    assert equal.verdict == "will not learn"
    assert "All 256 completions earned 1" in equal.reasons[0]
    none = judge(np.full((32, 8), np.nan), np.full(8, np.nan), 0.01, 0.1, 9.0)
    assert "returned None" in none.reasons[0]
    by_prompt = judge(np.tile(np.arange(8.0), (32, 1)), center, 0.01, 0.1, 9.0)
    assert "no two members of a pair ever differed" in by_prompt.reasons[0]
    rare = np.zeros((32, 8))
    rare[0, 0] = rare[5, 3] = 1.0
    assert "Only 2 of 256" in judge(rare, center, 0.01, 0.1, 9.0).reasons[0]


def test_what_preflight_cannot_tell_from_noise_may_learn():
    """An estimate below 0, which is noise, is no proof that there is no signal."""
    anticorrelated = rewards(0.0, 1.0, pairs=32)
    anticorrelated -= 0.9 * anticorrelated.mean(axis=1, keepdims=True)  # pairs differ less than by chance
    found = judge(anticorrelated, np.zeros(8), 0.01, 0.1, 9.0)
    assert found.verdict == "may learn"
    assert found.interval[0] == found.gain == found.gain_interval[0] == 0.0
    assert 0.02 < found.interval[1] < 0.5
    assert "do not tell signal from noise" in found.reasons[0]
    assert found.settings["population_size"] < 1024, "what it may be, not the least that it can be"


def test_single_members_share_prompts_and_are_compared_on_them(tmp_path):
    how = {"antithetic": False, "fitness_shaping": "group", "population_size": 4, "log_completions": True}
    t = made(tmp_path, "run", max_steps=1, **how)
    t.train()
    rows = read_lines(tmp_path / "run" / "completions" / "train-1.jsonl")
    asked = Counter(row["prompt_index"] for row in rows)
    assert [*asked.values()] == [2] * 4
    assert np.count_nonzero(t.run.journal.iterations[0].coefficients_M) > 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompts_per_step": 6, "population_size": 4}, "give two answers, which comparing takes, to 4 prompts"),
        (
            {"prompts_per_step": 6, "population_size": 4, "antithetic": False, "fitness_shaping": "group"},
            "to 4 prompts",
        ),
        ({"prompts_per_member": 7}, "the dataset has 6 prompts: lower it"),
        ({"fitness_shaping": "centered_rank"}, "compares their means, easy prompts with hard ones: set one of group"),
        ({"population_size": 7}, "population_size 7 is odd"),
        ({"prompts_per_member": 1, "learning_rate": "auto"}, "so each needs two"),
    ],
)
def test_prompts_that_members_cannot_have(tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        made(tmp_path, "run", **options)
    assert not (tmp_path / "run").exists()


def test_what_cannot_change_on_a_resume(tmp_path):
    made(tmp_path, "run", max_steps=1).train()
    for change, says in (
        ({"prompts_per_member": 3}, "prompts_per_member = 2 and would go on with 3"),
        ({"learning_rate": "auto"}, "learning_rate = 0.05 and would go on with 'auto'"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type = 'constant' and would go on with 'cosine'"),
        ({"sigma_schedule": "linear"}, "sigma_schedule = 'constant' and would go on with 'linear'"),
    ):
        with pytest.raises(JournalError, match=says):
            made(tmp_path, "run", **change).train(resume_from_checkpoint=True)


def test_a_run_of_0_1_0_keeps_its_steps(tmp_path, monkeypatch, capsys):
    shutil.copytree(Path(__file__).parents[1] / "data" / "v0.1.0", tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    for options in (["--lr_scheduler_type", "linear"], ["--prompts_per_member", "2", "--fitness_shaping", "group"]):
        assert main(["train", "--resume", "--output_dir", "full", "--max_steps", "4", *options]) == 1
        assert "cannot change on --resume" in capsys.readouterr().err


def test_a_run_behind_its_preflight_is_the_run_without(tmp_path):
    how = {"sigma": "auto", "learning_rate": "auto", "perturbation": "lowrank", "guard": True, "max_steps": 2}
    made(tmp_path, "plain", **how).train()
    t = made(tmp_path, "behind", **how)
    t.preflight()
    t.train()
    assert journal_of(tmp_path, "behind") == journal_of(tmp_path, "plain")


def test_preflight_of_a_trainer_reads_only(tmp_path):
    t = made(tmp_path, "run", sigma="auto", learning_rate="auto")
    before = t.engine.digest()
    found = t.preflight()
    assert found.completions == 64 * 6 + 6
    assert found.sigma > 0
    assert t.engine.digest() == before
    assert not (tmp_path / "run").exists()
    assert any(line.startswith("verdict") for line in found.lines())


def test_a_run_that_chooses_its_steps_measures_them_without_a_guard_too(tmp_path):
    t = made(tmp_path, "run", learning_rate="auto", guard=False, max_steps=2, reward_funcs=plain)
    t.train()
    assert all("es/step_kl_measured" in line for line in t.run.history if "reward" in line)
    bare = made(tmp_path, "bare", guard=False, max_steps=2, reward_funcs=plain)
    bare.train()
    assert not any("es/step_kl_measured" in line for line in bare.run.history)
