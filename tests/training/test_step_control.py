"""How far steps move the center: which of them are measured, and that a run which breaks is noticed all the same."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from runs import journal_of, plain, trainer, without_times
from seedtune.engines.base import Completion, Prompt
from seedtune.journal.store import Journal
from seedtune.training import step_control
from seedtune.training.guard import MAX_STEP_KL
from seedtune.training.step_control import StepMeter
from seedtune.utils.files import read_lines
from tiny import save_tiny

PAIRS = {"antithetic": True, "population_size": 8, "fitness_shaping": "pairs", "prompts_per_member": 2}


def made(tmp_path, name, **options):
    base = tmp_path / "base"
    if not base.exists():
        save_tiny(base, dtype=torch.float32)
    how = {**PAIRS, "reward_funcs": plain, "guard": True, "learning_rate": 0.001, **options}
    return trainer(tmp_path, model=str(base), output_dir=str(tmp_path / name), **how)


def passes(t, monkeypatch):
    """Texts that are read to measure the step of each iteration, from here on."""
    counts: list[int] = []
    read = StepMeter.__dict__["_read"]

    def counted(self, texts):
        if counts:  # else it is the base model that is read
            counts[-1] += sum(len(prompts) for prompts, _ in texts)
        return read(self, texts)

    monkeypatch.setattr(StepMeter, "_read", counted)
    t.events.step_begin = lambda begin=t.events.step_begin: (counts.append(0), begin())
    return counts


def measured(t):
    return [line["step"] for line in t.run.iterations if "es/step_kl_measured" in line]


def spoil(t, at):
    """Break the model behind an iteration's update, as no prediction tells."""
    update, done = t.engine.update, iter(range(1, 100))

    def spoiled(*args):
        norm = update(*args)
        if next(done) == at:
            center = t.engine.center
            for weight in center.master.weights:
                weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            center.show_center()
        return norm

    t.engine.update = spoiled


def test_as_many_texts_as_hold_enough_tokens():
    prompts = [Prompt("", (n,)) for n in range(4)]

    def kept(*lengths):
        texts = [Completion((5,) * length, "", truncated=True) for length in lengths]
        some, completions = step_control._enough((prompts, texts))
        assert [len(c.ids) for c in completions] == [lengths[p.ids[0]] for p in some]
        return [p.ids[0] for p in some]

    assert kept(32, 32, 32, 32) == [0, 1]
    assert kept(32, 31, 32, 32) == [0, 1, 2]
    assert kept(0, 32, 0, 32) == [1, 3]
    assert kept(2, 2, 2, 2) == [0, 1, 2, 3]


def test_steps_of_a_fixed_rate_are_measured_where_they_are_evaluated(tmp_path, monkeypatch):
    t = made(tmp_path, "run", max_steps=6, eval_steps=5)
    counts = passes(t, monkeypatch)
    t.train()
    assert measured(t) == [5, 6]
    texts = sum(len(prompts) for prompts, _ in t.steps.meter.texts)
    assert counts == [0, 2, 0, 2, 2 * texts, texts]  # before and behind the fifth, and behind the sixth
    assert texts > 2


def test_steps_that_the_run_chooses_are_measured_each(tmp_path):
    t = made(tmp_path, "run", learning_rate="auto", eval_steps=0)
    t.train()
    assert measured(t) == [1, 2, 3]


def test_a_step_that_is_predicted_to_be_large_is_measured(tmp_path):
    t = made(tmp_path, "run", learning_rate=0.4, eval_steps=0, max_steps=3, max_kl=1e9)
    t.train()
    predicted = {line["step"]: line["es/step_kl"] for line in t.run.iterations}
    assert max(predicted.values()) > MAX_STEP_KL / 4
    assert {n for n, kl in predicted.items() if kl > MAX_STEP_KL / 4 and n < 3} <= {*measured(t)}


@pytest.mark.parametrize("at", [2, 3])
@pytest.mark.parametrize("learning_rate", [0.001, "auto"])
def test_a_run_that_breaks_is_noticed_within_two_iterations(tmp_path, at, learning_rate):
    t = made(tmp_path, "run", max_steps=6, eval_steps=0, learning_rate=learning_rate, master_dtype="float32")
    spoil(t, at)
    t.train()
    first = t.run.journal.returns[0]
    assert at <= first.t < at + 2
    assert "nats per token" in first.reason
    assert not any("es/kl_measured" in line for line in t.run.iterations[: at - 1]) or learning_rate == "auto"


def test_near_the_bound_steps_are_measured_each_and_a_resumed_run_does_so_too(tmp_path):
    how = {"max_steps": 8, "eval_steps": 0, "learning_rate": 0.01, "max_kl": 0.01}
    whole = made(tmp_path, "whole", **how)
    whole.train()
    far = {line["step"] for line in whole.run.iterations if "es/kl_measured" in line} - {*measured(whole)}
    assert far
    assert {n + 1 for n in far} <= {*measured(whole)}
    assert len(measured(whole)) < 8
    lines = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines(keepends=True)
    for count in range(2, len(lines)):
        shutil.copytree(tmp_path / "whole", tmp_path / f"cut-{count}")
        (tmp_path / f"cut-{count}" / "journal.jsonl").write_text("".join(lines[:count]))
        t = made(tmp_path, f"cut-{count}", **how)
        t.train(resume_from_checkpoint=True)
        assert journal_of(tmp_path, f"cut-{count}") == journal_of(tmp_path, "whole")
        assert without_times(t.run.history) == without_times(whole.run.history), count


def test_states_of_before_have_no_distance(tmp_path):
    t = made(tmp_path, "run", max_steps=1)
    t.train()
    state = t.steps.state()
    del state["distance"]
    t.steps.distance = 3.0
    t.steps.load_state(state)
    assert t.steps.distance == 0.0
    assert np.isfinite(list(state.values())).all()
    assert Journal.read(tmp_path / "run")[0].iterations[0].control == {}
    assert "distance" in read_lines(tmp_path / "run" / "metrics.jsonl")[1]["control"]
