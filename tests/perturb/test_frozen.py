"""Parameters that the user has frozen (`requires_grad=False`) stay as they are, and the user is told how many."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from runs import head_of, trained, trainer
from seedtune.errors import ModelError
from seedtune.perturb.checks import FROZEN, check_finite
from seedtune.training import replay
from tiny import save_tiny, tiny_llama
from tiny_engine import engine


def frozen_llama(*frozen, model=None):
    model = model or tiny_llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    return model


@pytest.mark.parametrize("how", [{}, {"perturbation": "lowrank", "rank": 1, "lowrank_vectors": True}])
def test_frozen_parameters_do_not_move(tmp_path, how):
    model, before = frozen_llama("layers.0", "lm_head"), tiny_llama()
    t = trainer(tmp_path, model=model, **how)
    facts = dict(head_of(t))
    assert facts["frozen"] == "10 parameters with requires_grad=False stay as they are"
    t.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p.float(), before.get_parameter(name))}
    assert moved
    assert not any("layers.0" in name or "lm_head" in name for name in moved)
    assert any("layers.1" in name for name in moved)


def test_a_model_that_is_given_again_is_frozen_as_before(tmp_path):
    model = frozen_llama("layers.0")
    first, second = engine(model), engine(model)
    assert first.center.names == second.center.names
    assert not any("layers.0" in name for name in second.center.names)
    model.requires_grad_(True)
    assert any("layers.0" in name for name in engine(model).center.names)


@pytest.mark.parametrize("rank", [None, 1])
def test_a_model_that_is_frozen_altogether_is_refused(rank):
    with pytest.raises(ModelError, match=r"of 21 parameters in scope 'all' 21 are frozen .*set requires_grad to True"):
        engine(tiny_llama().requires_grad_(False), rank=rank)


def test_a_run_with_frozen_parameters_is_replayed(tmp_path):
    base = save_tiny(tmp_path / "base")
    model = frozen_llama("layers.0", model=AutoModelForCausalLM.from_pretrained(base))
    t = trainer(tmp_path, model=model)
    t.train()
    patch = replay.load(tmp_path / "run", "last")
    assert FROZEN in patch.header["base"]["left_out"].values()
    assert replay.rebuild([patch]).digest() == t.engine.digest()


def test_nothing_is_frozen_in_a_model_that_is_loaded_by_name(tmp_path):
    trained(tmp_path)
    assert not replay.load(tmp_path / "run").header["base"]["left_out"]


def test_weights_are_checked_whatever_their_precision():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for value in (float("nan"), float("inf"), -float("inf")):
            model = tiny_llama().to(dtype)
            check_finite(model)
            model.lm_head.weight.data[3, 4] = value
            with pytest.raises(ModelError, match=r"lm_head.weight holds 1 of 8352 values that are NaN or infinite"):
                check_finite(model)
