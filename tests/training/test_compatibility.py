"""What Seedtune 0.1.0 wrote is read: runs resume, replay and apply to the same bits (tests/data/v0.1.0/README.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from seedtune.cli.main import main
from seedtune.training import replay

OLD = Path(__file__).parents[1] / "data" / "v0.1.0"
#: SHA-256 of model.safetensors after four iterations.
WEIGHTS = {
    "lowrank": "b5ea4eb430b1b50135aa07e153ad92ba30c2a982cc84db34be33bf9c6acae7f2",
    "full": "20044b476afaf9dac99e25f8a43fc029d4fa7f9dbcefcb0212aad5b229125f27",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A copy of the files, as the working folder: their paths are relative."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def weights(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("run", WEIGHTS)
def test_a_run_resumes_from_its_state_to_the_same_bits(here, run, capsys):
    assert main(["train", "--resume", "--output_dir", run, "--max_steps", "4"]) == 0
    said = capsys.readouterr()
    assert "state.safetensors" not in said.out + said.err, "the checkpoint's state was not read"
    assert (here / run / "journal.jsonl").read_bytes() == (here / f"{run}-finished.jsonl").read_bytes()
    assert weights(here / run / "checkpoint-4") == WEIGHTS[run]
    steps = [json.loads(line)["step"] for line in (here / run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("run", WEIGHTS)
def test_a_run_resumes_without_its_checkpoint_by_repeating_the_updates(here, run):
    shutil.rmtree(here / run / "checkpoint-2")
    assert main(["train", "--resume", "--output_dir", run, "--max_steps", "4"]) == 0
    assert weights(here / run / "checkpoint-4") == WEIGHTS[run]


@pytest.mark.parametrize("run", WEIGHTS)
def test_a_journal_and_a_patch_give_the_same_bytes(here, run):
    assert main(["replay", f"{run}-finished.jsonl", "--out", "replayed"]) == 0
    assert main(["apply", f"{run}.seedtune", "--out", "applied"]) == 0
    assert weights(here / "replayed") == weights(here / "applied") == WEIGHTS[run]
    assert replay.load(here / f"{run}-finished.jsonl").to_bytes() == (here / f"{run}.seedtune").read_bytes()


@pytest.mark.parametrize("run", WEIGHTS)
def test_the_settings_that_a_run_was_started_with_start_the_same_run(here, run):
    assert main(["train", "--config", f"{run}.yaml", "--output_dir", "again", "--max_steps", "4"]) == 0
    assert weights(here / "again" / "checkpoint-4") == WEIGHTS[run]


def test_runs_and_patches_are_reported_inspected_and_compared(here, capsys):
    for name in WEIGHTS:
        assert main(["inspect", f"{name}.seedtune"]) == 0
        assert main(["report", name]) == 0
    assert main(["diff", "lowrank", "full"]) == 1
    assert "perturbation" in capsys.readouterr().out


def test_a_comparison_is_reported(here):
    (here / "comparison").mkdir()
    shutil.copy(here / "comparison.json", here / "comparison")
    assert main(["report", "comparison"]) == 0
    page = (here / "comparison" / "report" / "index.html").read_text()
    assert "es learning_rate=0.05" in page
    assert "grpo" in page
