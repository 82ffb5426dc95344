"""Weights, logits and updates that are no numbers: found before training, or the run ends, in its own words, with the
last center that was sound.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from architectures import tiny_model
from runs import journal_of, trainer
from seedtune.engines.base import Sampling
from seedtune.errors import ModelError, NotFiniteError
from seedtune.evaluation.kl import k3
from seedtune.evaluation.perplexity import perplexity
from seedtune.training import replay
from tiny import save_tiny, tiny_llama
from tiny_engine import WORDS, engine

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("where", ["lm_head.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_no_numbers_are_found_before_training(tmp_path, where, value):
    model = tiny_llama()
    model.get_parameter(where).data.view(-1)[5] = value
    with pytest.raises(ModelError, match=f"{where} holds 1 of .* NaN or infinite: the model is damaged"):
        trainer(tmp_path, model=model)
    assert not (tmp_path / "run").exists()


def test_a_head_of_large_weights_has_a_perplexity(tmp_path):
    model = tiny_llama()
    model.lm_head.weight.data *= 1e4
    assert perplexity(engine(model)) == pytest.approx(math.exp(300))
    t = trainer(tmp_path, model=model, max_steps=1)
    t.train()
    assert all(math.isfinite(v) for line in t.run.history for v in line.values() if isinstance(v, float))


def test_kl_of_what_the_base_never_says_is_a_number():
    assert math.isfinite(k3(np.array([-900.0]), np.array([-1.0]))[0])


def test_weights_that_the_precision_does_not_hold():
    model = tiny_llama()
    model.lm_head.weight.data[0, 0] = 1e6
    with pytest.raises(NotFiniteError, match="float16 holds no more than 65504"):
        engine(model, dtype="float16")


@pytest.mark.parametrize("model", [tiny_llama, lambda: tiny_model("rwkv")], ids=["loop", "generate"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(model, temperature):
    e = engine(model())
    prompts = e.encode(WORDS, 4)
    completions = e.generate(prompts, Sampling(4), 0)
    next(p for name, p in e.model.named_parameters() if "head" in name).data.view(-1)[7] = NAN
    with pytest.raises(NotFiniteError, match="logits are no numbers"):
        e.generate(prompts, Sampling(4, temperature=temperature), 0)
    with pytest.raises(NotFiniteError, match="logits are no numbers"):
        e.logprobs(prompts, completions, base=False)
    with pytest.raises(NotFiniteError, match="logits are no numbers"):
        perplexity(e)


def spoiled(t, at, *, told):
    """A run whose update number `at` leaves NaN in the center; `told`: its norm shows it."""
    update, count = t.engine.update, iter(range(1, 100))

    def spoil(*arguments):
        norm = update(*arguments)
        if next(count) != at:
            return norm
        t.engine.center.master.weights[0].fill_(NAN)
        t.engine.center.show_center()
        return NAN if told else norm

    t.engine.update = spoil
    return t


@pytest.mark.parametrize("told", [True, False])
def test_a_run_whose_center_is_lost_ends_with_the_last_sound_one(tmp_path, told):
    base = str(save_tiny(tmp_path / "base"))
    t = spoiled(trainer(tmp_path, model=base, max_steps=6, eval_steps=2, save_steps=2), 5, told=told)
    result = t.train()
    assert result.why.startswith(f"Ended after iteration {4 if told else 5}: ")
    assert "no numbers any more" in result.why
    assert "the center after iteration 4" in result.why
    assert t.engine.digest() == t.run.journal.iterations[3].digest
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        weights = AutoModelForCausalLM.from_pretrained(folder).parameters()
        assert all(p.isfinite().all() for p in weights), folder
    assert replay.rebuild([replay.load(tmp_path / "run", "last")]).digest() == t.engine.digest()
    again = trainer(tmp_path, model=base, max_steps=6, eval_steps=2, save_steps=2)
    assert again.train(resume_from_checkpoint=True).global_step == 6


def test_a_guarded_run_returns_and_goes_on(tmp_path):
    t = spoiled(trainer(tmp_path, max_steps=5, eval_steps=2, guard=True), 3, told=False)
    assert t.train().global_step == 5
    assert len(t.run.journal.returns) == 1


def test_an_update_that_overflows_in_the_first_iteration_is_an_error(tmp_path):
    t = spoiled(trainer(tmp_path), 1, told=True)
    with pytest.raises(NotFiniteError, match="the update of iteration 1 is no finite number"):
        t.train()
    assert b'"kind":"iteration"' not in journal_of(tmp_path).replace(b" ", b"")


def test_noise_that_the_precision_does_not_hold_is_an_error(tmp_path):
    with pytest.raises(NotFiniteError, match="a smaller sigma"):
        trainer(tmp_path, dtype="float16", sigma=1e6).train()
