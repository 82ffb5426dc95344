"""The example's Algorithm 2 gives the digests that the journal of a run with the same settings holds."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from runs import trainer
from seedtune.es.population import Population
from seedtune.tasks.conciseness import conciseness
from tiny_engine import engine

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal_es.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("minimal_es", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def journal(tmp_path, model, example, **options):
    """Digests of a run on the example's task."""
    rows = [{"prompt": [{"role": "user", "content": q}], "solution": s} for q, s in example.TASK]
    trainer(tmp_path, rows=rows, model=str(model), reward_funcs=conciseness, drift_samples=0, **options).train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    return [line["digest"] for line in lines[1:]]


def test_digests_are_those_of_a_run(tmp_path, tiny_folder, example):
    after = [digest for _, digest in example.evolve(str(tiny_folder), population=4, sigma=0.05, alpha=0.05, length=12)]
    assert after == journal(tmp_path, tiny_folder, example)
    assert len(set(after)) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_members_are_those_of_the_engine(tiny_folder, example, monkeypatch, dtype):
    """Weights alone, without decoding: in bfloat16 two ways to decode may break a tie differently."""
    seen = []

    def reward(model, *_):
        seen.append([p.clone() for p in model.parameters()])
        return float(len(seen))

    monkeypatch.setattr(example, "reward", reward)
    settings = {"iterations": 1, "population": 2, "sigma": 0.05, "seed": 1, "dtype": dtype}
    [(_, after)] = example.evolve(str(tiny_folder), **settings)
    e = engine(sigma=0.05, dtype=dtype)
    members = Population(2).ask(1)
    for member, weights in zip(members, seen[:: len(example.TASK)], strict=True):
        e.set_members([member])
        assert all(torch.equal(a, b) for a, b in zip(e.model.parameters(), weights, strict=True))
    e.center.update(members, np.array([-0.5, 0.5], dtype=np.float32), 0.025)
    assert e.center.digest() == after


def test_the_command_line_prints_the_digests_of_a_run_with_default_settings(tmp_path, tiny_folder, example):
    words = [
        "--model",
        str(tiny_folder),
        "--iterations",
        "2",
        "--dtype",
        "float32",
        "--population",
        "2",
        "--sigma",
        "0.1",
    ]
    done = subprocess.run([sys.executable, str(EXAMPLE), *words, "--length", "8"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = journal(
        tmp_path, tiny_folder, example, max_steps=2, population_size=2, sigma=0.1, learning_rate=None,
        max_completion_length=8,
    )  # fmt: skip
    assert [line.split()[-1] for line in done.stdout.splitlines()] == expected
