"""Model objects whose weights are not those of their name: whatever a run begins from, its journal leads back to it."""

from __future__ import annotations

import gc
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from runs import journal_of, trainer, weights
from seedtune.cli.main import main
from seedtune.engines import loading
from seedtune.errors import ModelError, RunFolderError
from seedtune.journal.store import Journal
from seedtune.training.replay import load, rebuild
from tiny import save_tiny, tiny_llama

KEPT = {"guard": True, "load_best_model_at_end": False}
FORMS = [{}, {"perturbation": "lowrank"}, {"master_dtype": "bfloat16"}, {"sigma": "auto", "perturbation": "lowrank"}]


def stored(tmp_path, **options):
    """A model object that was loaded from a folder."""
    if not (tmp_path / "base").exists():
        save_tiny(tmp_path / "base")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "base", **options)


def replays(run):
    """Whether the journal, and what it leads to, is the checkpoint, with nothing but the folder at hand."""
    engine = rebuild([load(run, "last")])
    last = AutoModelForCausalLM.from_pretrained(sorted(run.glob("checkpoint-[0-9]*"))[-1])
    return engine.digest() == load(run, "last").digest(len(load(run, "last"))) and all(
        torch.equal(engine.center.parameter(n, p.dtype), p)
        for n, p in last.named_parameters()
        if n in engine.center.names
    )


# --- one trainer, two runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_second_run_of_a_trainer_begins_with_the_base_model_again(tmp_path, form, caplog):
    t = trainer(tmp_path, model=stored(tmp_path), **{**KEPT, **form})
    t.train()
    first = journal_of(tmp_path)
    shutil.rmtree(tmp_path / "run")
    t.train()
    assert journal_of(tmp_path) == first
    assert "begins with the base model again" in caplog.text
    assert replays(tmp_path / "run")
    assert [line["step"] for line in t.run.evaluations] == [0, 2, 3]


def test_a_second_run_is_refused_where_the_base_was_not_kept(tmp_path):
    t = trainer(tmp_path, model=stored(tmp_path), drift_samples=0)
    t.train()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(ModelError, match="make a new trainer"):
        t.train()
    assert not (tmp_path / "run").exists()


def test_a_second_run_into_the_same_folder_is_refused_and_moves_nothing(tmp_path):
    t = trainer(tmp_path, model=stored(tmp_path), **KEPT)
    t.train()
    digest = t.engine.digest()
    with pytest.raises(RunFolderError, match="another run"):
        t.train()
    assert t.engine.digest() == digest


# --- two trainers, one model object -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("gone", [True, False])
def test_a_second_trainer_goes_on_from_the_object_and_keeps_its_base(tmp_path, form, gone, caplog):
    model = stored(tmp_path)
    first = trainer(tmp_path, model=model, **form)
    first.train()
    moved = {n: first.engine.center.parameter(n, torch.float32) for n in first.engine.center.names}
    if gone:
        del first
        gc.collect()
    second = trainer(tmp_path, model=model, output_dir=str(tmp_path / "second"), **form)
    assert all(torch.equal(second.engine.center.parameter(n, torch.float32), w) for n, w in moved.items())
    second.train()
    assert "is not what is stored under its name" in caplog.text
    header = Journal.read(tmp_path / "second")[0].header
    assert header["base"]["model"] == f"{tmp_path / 'base'} (changed)"
    assert replays(tmp_path / "second")
    assert main(["replay", str(tmp_path / "second"), "--out", str(tmp_path / "again"), "--until", "last"]) == 0
    assert weights(tmp_path / "again") == weights(tmp_path / "second/checkpoint-3")
    if not gone:
        with pytest.raises(ModelError, match="another trainer"):
            first.evaluate()


def test_two_trainers_that_were_both_made_before_either_trained(tmp_path):
    model = stored(tmp_path)
    first = trainer(tmp_path, model=model, perturbation="lowrank")
    second = trainer(tmp_path, model=model, perturbation="lowrank", output_dir=str(tmp_path / "second"))
    with pytest.raises(ModelError, match="another trainer"):
        first.train()
    second.train()
    alone = trainer(tmp_path, model=stored(tmp_path), perturbation="lowrank", output_dir=str(tmp_path / "alone"))
    alone.train()
    assert journal_of(tmp_path, "second") == journal_of(tmp_path, "alone")


def test_a_trainer_that_is_gone_leaves_the_model_as_its_center(tmp_path):
    model = stored(tmp_path)
    t = trainer(tmp_path, model=model, perturbation="lowrank")
    t.train()
    center = {n: t.engine.center.parameter(n, torch.float32) for n in t.engine.center.names}
    del t
    gc.collect()
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert all(torch.equal(model.get_parameter(n), w) for n, w in center.items())


# --- weights that are not those of the name ---------------------------------------------------------------------------


def scaled(model):
    model.lm_head.weight.data *= 1.5


def one_weight(model):
    model.model.norm.weight.data[3] += 1e-3


@pytest.mark.parametrize("change", [scaled, one_weight])
def test_an_object_that_was_changed_is_not_named_as_its_base(tmp_path, change):
    model = stored(tmp_path)
    assert not loading.is_changed(model, str(tmp_path / "base"))
    change(model)
    trainer(tmp_path, model=model, max_steps=2).train()
    assert Journal.read(tmp_path / "run")[0].header["base"]["model"].endswith("base (changed)")
    assert replays(tmp_path / "run")


@pytest.mark.parametrize("perturbation", ["full", "lowrank"])
def test_a_base_that_the_master_rounds_is_kept_as_it_came(tmp_path, perturbation):
    options = {"master_dtype": "bfloat16", "dtype": "bfloat16", "max_steps": 2, "perturbation": perturbation}
    model = stored(tmp_path)
    scaled(model)
    expected = {name: p.clone() for name, p in model.named_parameters()}
    trainer(tmp_path, model=model, **options).train()
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "run/base")
    assert all(torch.equal(p, expected[name]) for name, p in kept.named_parameters())
    assert replays(tmp_path / "run")
    model = stored(tmp_path)
    scaled(model)
    with pytest.raises(ModelError, match="save_pretrained"):
        trainer(tmp_path, model=model, output_dir=str(tmp_path / "b"), drift_samples=0, **options).train()


def test_an_object_of_another_dtype_is_another_base(tmp_path):
    model = stored(tmp_path, dtype=torch.bfloat16)
    assert loading.is_changed(model, str(tmp_path / "base"))
    trainer(tmp_path, model=model, max_steps=1).train()
    assert replays(tmp_path / "run")


def test_an_object_that_is_what_its_name_says_keeps_no_copy(tmp_path, caplog):
    trainer(tmp_path, model=stored(tmp_path)).train()
    assert not (tmp_path / "run/base").exists()
    assert Journal.read(tmp_path / "run")[0].header["base"]["model"] == str(tmp_path / "base")
    assert replays(tmp_path / "run")
    assert "stored under its name" not in caplog.text


@pytest.mark.parametrize("name", ["", "model", "/nowhere/at/all", "me/unknown"])
def test_a_name_under_which_nothing_is_stored_tells_nothing(name):
    assert not loading.is_changed(tiny_llama(), name)


def test_a_run_of_a_changed_object_resumes(tmp_path):
    model = stored(tmp_path)
    scaled(model)
    trainer(tmp_path, model=model, max_steps=4, output_dir=str(tmp_path / "whole")).train()
    model = stored(tmp_path)
    scaled(model)
    trainer(tmp_path, model=model, max_steps=2).train()
    trainer(tmp_path, model=str(tmp_path / "run/base"), max_steps=4).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
