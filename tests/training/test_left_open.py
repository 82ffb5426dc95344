"""What nobody set and the machine decides (rows that fit into memory, threads) is on a resume as the run began."""

from __future__ import annotations

import json

import pytest
import torch

from runs import journal_of, plain, trainer
from seedtune.config import yaml_file
from seedtune.engines.hf.engine import HFEngine
from seedtune.errors import JournalError


@pytest.fixture
def room(monkeypatch):
    """Sets how many rows fit into memory from now on."""

    def fits(rows):
        monkeypatch.setattr(HFEngine, "rows_that_fit", lambda self, tokens: rows)

    return fits


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def header(tmp_path):
    return json.loads(journal_of(tmp_path).split(b"\n")[0])["config"]


@pytest.mark.parametrize("options", [{}, {"perturbation": "lowrank"}, {"sigma": "auto", "learning_rate": None}])
def test_rows_that_fit_change_and_the_run_goes_on_to_the_same_bits(tmp_path, room, caplog, options):
    room(5)
    trainer(tmp_path, output_dir=str(tmp_path / "whole"), max_steps=2, reward_funcs=plain, **options).train()
    trainer(tmp_path, max_steps=1, reward_funcs=plain, **options).train()
    room(3)
    again = trainer(tmp_path, max_steps=2, reward_funcs=plain, **options)
    again.train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
    spec = again.fleet.rollouts.spec
    assert (spec.sampling.rows_at_once, spec.chunk_size) == (5, 10)
    settings = yaml_file.read(tmp_path / "run" / "config.resolved.yaml")
    assert (settings["generation_batch_size"], settings["chunk_size"]) == (5, 10)
    assert "generation_batch_size: 5, as the run began; nobody set it, and chosen now it would be 3." in caplog.text
    assert "chunk_size: 10, as the run began" in caplog.text
    assert "learning_rate" not in caplog.text


def test_what_is_set_is_still_refused_where_it_differs(tmp_path, room):
    room(5)
    trainer(tmp_path, max_steps=1).train()
    with pytest.raises(JournalError, match="generation_batch_size = 5 and would go on with 4"):
        trainer(tmp_path, max_steps=2, generation_batch_size=4).train(resume_from_checkpoint=True)
    with pytest.raises(JournalError, match="chunk_size = 10 and would go on with 4"):
        trainer(tmp_path, max_steps=2, chunk_size=4).train(resume_from_checkpoint=True)
    assert trainer(tmp_path, max_steps=2, generation_batch_size=5).train(resume_from_checkpoint=True).global_step == 2


def test_a_learning_rate_that_is_left_out_is_the_runs(tmp_path, caplog):
    trainer(tmp_path, max_steps=1, learning_rate=0.07).train()
    trainer(tmp_path, max_steps=2, learning_rate=None).train(resume_from_checkpoint=True)
    assert header(tmp_path)["learning_rate"] == 0.07
    assert json.loads(journal_of(tmp_path).split(b"\n")[2])["learning_rate"] == (0.07).hex()
    assert "learning_rate: 0.07, as the run began; nobody set it, and chosen now it would be 0.025." in caplog.text


@pytest.mark.usefixtures("_threads")
def test_threads_are_those_that_the_run_began_with(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("seedtune.training.run.environment", lambda: {"cores": 4})
    trainer(tmp_path, max_steps=1, threads=1).train()
    file = tmp_path / "run" / "environment.json"

    def resumed(before, max_steps, **options):
        torch.set_num_threads(1)
        file.write_text(json.dumps({"torch_threads": before, "engines": {"1": "hf"}}))
        caplog.clear()
        trainer(tmp_path, max_steps=max_steps, **options).train(resume_from_checkpoint=True)
        return torch.get_num_threads()

    assert resumed(2, 2) == 2
    assert (
        "The run began with 2 threads, which decide how sums are rounded: it goes on with as many, not 1."
        in caplog.text
    )
    assert resumed(2, 3, threads=1) == 1
    assert "threads" not in caplog.text
    assert resumed(64, 4) == 1
    assert "this machine has 4" in caplog.text
    assert resumed("?", 5) == 1
