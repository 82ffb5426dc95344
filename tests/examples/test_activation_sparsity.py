"""The example's reward is what it says, and members that earn it are followed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from runs import trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "activation_sparsity.py"
ROWS = [{"prompt": f"say {word}:", "completion": 2 * word} for word in ("one", "two", "three", "four")]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("activation_sparsity", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_counts_silent_units_behind_the_embeddings(example):
    zeros = torch.zeros(2, 4)
    one_of_four = torch.tensor([[1.0, 0.5, 0.5, 0.001], [-2.0, 1.0, 1.0, 0.0]])
    half = torch.tensor([[1.0, 0.0, 0.0, -0.5], [0.5, 0.001, 0.0, 1.0]])
    assert example.sparsity(hidden_states=[(zeros, one_of_four), (zeros, one_of_four, half)]) == [0.25, 0.375]


def test_it_rises_in_training(example, tmp_path):
    run = trainer(
        tmp_path, rows=ROWS, reward_funcs=[example.sparsity, "log_likelihood"], reward_weights=[1, 0], max_steps=20,
        population_size=16, antithetic=True, eval_steps=0, learning_rate=0.2,
    )  # fmt: skip
    run.train()
    first, last = run.run.evaluations
    assert last["eval/rewards/sparsity/mean"] > first["eval/rewards/sparsity/mean"] + 0.01
    assert last["eval/rewards/log_likelihood/mean"] < 0
