"""`sigma: auto`: the measurement, what is chosen from it, and that it is fixed for the run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from runs import Notes, journal_of, trainer
from seedtune.engines.hf.logprobs import distributions
from seedtune.errors import ConfigError
from seedtune.es.population import CENTER, Member
from seedtune.evaluation.perplexity import passages
from seedtune.training import calibration
from seedtune.training.step_control import StepMeter
from tiny import tiny_gpt2, tiny_llama
from tiny_engine import GREEDY, WORDS, engine


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_distributions_are_those_of_each_row_alone(make):
    e = engine(make())
    prompts = [p.ids for p in e.encode(WORDS, 12)]
    new = [(7,), (8, 9, 10), (), (11,) * 5, (5, 6)]
    for prompt, ids, logs in zip(prompts, new, distributions(e.model, prompts, new, 1), strict=True):
        with torch.no_grad():
            alone = e.model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        assert logs.shape == (len(ids), 261)
        assert torch.allclose(logs, alone, atol=1e-4)


@pytest.mark.parametrize("rank", [None, 1])
def test_divergence_is_kl_from_the_center_and_grows_like_sigma_squared(rank):
    e = engine(rank=rank, scope="linear")
    prompts = e.encode(WORDS, 12)
    texts = e.generate(prompts, GREEDY, 0)
    members = [Member(0, 0, 0, 1), Member(0, 1, 0, -1)]
    measured = []
    for sigma in (0.0001, 0.001, 0.01):
        e.set_sigma(sigma)
        measured.append(e.divergence(members, prompts, texts))
    assert np.allclose(np.array(measured[1:]) / np.array(measured[:-1]), 100, rtol=0.3)
    e.set_sigma(0.0)
    assert e.divergence(members, prompts, texts) == pytest.approx(0, abs=1e-6)
    assert e.generate(prompts, GREEDY, 0) == texts


def test_the_larger_of_both_kinds_of_text_counts(monkeypatch):
    e = engine(rank=1, scope="linear")
    prompts = e.encode(WORDS, 12)
    written, ordinary = calibration.probes(e, prompts, 12)
    whole = e.encode(passages()[: len(ordinary[0])], 0, truncate=True)
    assert [p.ids for p in ordinary[0]] == [text.ids[:1] for text in whole]
    assert all(0 < len(c.ids) <= 32 for c in ordinary[1])
    of = {id(written[1]): 0.1, id(ordinary[1]): 0.3}
    monkeypatch.setattr(e, "divergence", lambda members, prompts, completions: of[id(completions)])
    assert calibration._measure(e, [written, ordinary])(0.01) == 0.3
    of |= {id(written[1]): 0.5}
    assert calibration._measure(e, [written, ordinary])(0.01) == 0.5
    of |= {id(ordinary[1]): float("nan")}
    assert np.isnan(calibration._measure(e, [written, ordinary])(0.01))


@pytest.mark.parametrize("order", [1, -1])
def test_a_step_is_as_large_as_on_the_text_that_it_moves_most(order):
    e = engine(rank=1, scope="linear")
    texts = calibration.probes(e, e.encode(WORDS, 12), 12)[::order]
    meter = StepMeter(e, texts)
    e.update([Member(1, 0, 0, 1)], np.ones(1, np.float32), 0.01)
    step, _ = meter.after_step()
    kls = []
    for each, before in zip(meter.texts, meter.first, strict=True):
        now = e.distributions(CENTER, *each)
        kls.append(float(((now - before) * now.exp()).sum(-1).mean()))
    assert step == pytest.approx(max(kls))
    assert min(kls) < max(kls)


def test_sigma_is_read_off_between_the_points():
    assert calibration._where({0.001: 0.0003, 0.01: 0.03, 0.1: 3.0}, 0.3) == pytest.approx(0.032, abs=0.001)
    assert calibration._where({0.001: 0.0, 0.01: 0.3}, 0.3) == 0.01
    with pytest.raises(ConfigError, match="Set sigma yourself"):
        calibration._where({0.001: 1e-6, 0.01: 1e-4}, 0.3)


@pytest.mark.parametrize("perturbation", ["full", "lowrank"])
def test_auto_is_measured_once_journaled_and_kept_on_resume(tmp_path, perturbation):
    options = {"sigma": "auto", "learning_rate": None, "perturbation": perturbation}
    t = trainer(tmp_path, output_dir=str(tmp_path / "whole"), max_steps=3, **options)
    t.train()
    header = json.loads(journal_of(tmp_path, "whole").splitlines()[0])
    assert header["config"]["sigma"] == t.args.sigma == header["calibration"]["sigma"]
    assert t.args.learning_rate == t.args.sigma * (2 if perturbation == "lowrank" else 0.5)
    assert len(header["calibration"]["sigmas"]) == len(header["calibration"]["divergences"]) > 3
    nearest = min(header["calibration"]["divergences"], key=lambda kl: abs(kl - calibration.TARGET))
    assert nearest == pytest.approx(calibration.TARGET, rel=0.1)
    trainer(tmp_path, max_steps=2, **options).train()
    trainer(tmp_path, max_steps=3, **options).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")


def test_each_measurement_is_said_once(tmp_path):
    notes = Notes()
    t = trainer(tmp_path, sigma="auto", progress=notes)
    t.train()
    said = [line for text in notes.texts for line in text.splitlines() if line.startswith("  sigma ")]
    measured = json.loads(journal_of(tmp_path).splitlines()[0])["calibration"]["sigmas"]
    assert sorted(float(line.split()[1].rstrip(":")) for line in said[:-1]) == measured
    assert said[-1] == f"  sigma {t.args.sigma:g} is where they are {calibration.TARGET:g} nats per token from it"


def test_a_sigma_that_is_neither(tmp_path):
    with pytest.raises(ConfigError, match="sigma must be a finite number, or auto"):
        trainer(tmp_path, sigma="automatic")
