"""Runs whose rewards are computed from given texts: nothing is decoded, and all else is as in any run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from runs import Notes, journal_of, quiet_length, trainer
from seedtune.engines.hf.decoder import Decoder
from seedtune.engines.hf.engine import HFEngine
from seedtune.errors import ConfigError, DataError, RewardError
from seedtune.evaluation.evaluate import EvalSpec, evaluate
from seedtune.report import run_page
from seedtune.rewards import reads_outputs
from seedtune.training import replay
from tiny import save_tiny, tiny_llama, tiny_tokenizer
from tiny_engine import engine

ROWS = [{"prompt": f"say {word}:", "completion": 2 * word, "number": n} for n, word in
        enumerate(("one", "two", "three", "four", "fivesix"))]  # fmt: skip
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "never"} for row in ROWS]
#: What a run takes that says nothing of members and steps.
AUTO = {
    "perturbation": "lowrank", "antithetic": True, "fitness_shaping": "pairs", "prompts_per_member": 2, "sigma": "auto",
    "learning_rate": "auto", "guard": True, "load_best_model_at_end": True, "population_size": 8,
}  # fmt: skip


def read_run(tmp_path, rows=ROWS, reward_funcs="log_likelihood", **options):
    return trainer(tmp_path, rows=rows, reward_funcs=reward_funcs, **options)


def loss_of(model, prompt, completion):
    """The sum of the negative log-probabilities of a completion and its end, and their number."""
    tokenizer = tiny_tokenizer()
    before, text = (tokenizer(x)["input_ids"] for x in (prompt, completion + "<|end|>"))
    labels = torch.tensor([[*[-100] * len(before), *text]])
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([[*before, *text]]), labels=labels).loss
    return float(loss) * len(text), len(text)


@pytest.fixture
def nothing_is_decoded(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something is decoded")

    monkeypatch.setattr(HFEngine, "generate", refuse)
    monkeypatch.setattr(Decoder, "decode", refuse)


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize("how", [{}, AUTO])
def test_nothing_is_decoded_in_training_and_evaluation(tmp_path, how):
    run = read_run(tmp_path, **how)
    result = run.train()
    assert result.global_step == 3
    assert result.metrics["eval/kl"] > 0
    assert run.evaluate()["eval/reward"] == pytest.approx(result.metrics["eval/reward"]) or result.best_step == 0
    assert run.preflight().completions == 65 * 5


def test_rewards_and_loss_are_those_of_supervised_fine_tuning(tmp_path):
    """Transformers' own loss of a labeled text is the reference."""
    run = read_run(tmp_path, max_steps=1)
    metrics = run.evaluate()
    found = [loss_of(tiny_llama(), row["prompt"], row["completion"]) for row in ROWS]
    assert metrics["eval/reward"] == pytest.approx(-np.mean([total / count for total, count in found]), rel=1e-5)
    loss = sum(total for total, _ in found) / sum(count for _, count in found)
    assert metrics["eval/completions/loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["eval/completions/perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)


def test_held_out_loss_falls(tmp_path):
    run = read_run(tmp_path, max_steps=20, population_size=16, antithetic=True, eval_steps=0, learning_rate=0.1)
    run.train()
    first, last = run.run.evaluations
    assert last["eval/completions/loss"] < first["eval/completions/loss"] - 0.5


def test_a_margin_is_the_difference_of_mean_log_probabilities(tmp_path):
    run = read_run(tmp_path, PAIRS, "preference_margin", max_steps=1)
    run.train()
    rows = [json.loads(line) for line in (tmp_path / "run/completions/eval-0.jsonl").read_text().splitlines()]
    for row, pair in zip(rows, PAIRS, strict=True):
        (chosen, n), (rejected, m) = (
            loss_of(tiny_llama(), pair["prompt"], pair[key]) for key in ("chosen", "rejected")
        )
        assert row["preference_margin"] == pytest.approx(rejected / m - chosen / n, rel=1e-4)
        assert (row["completion"], row["rejected"]) == (pair["chosen"], "never")
    assert run.run.history[1]["num_tokens"] == 4 * sum(
        2 * len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"]) + 2 for p in PAIRS
    )


def test_a_margin_of_sums_is_an_argument(tmp_path):
    how = {"reward_args": {"preference_margin": {"per_token": False}}}
    metrics = read_run(tmp_path, PAIRS, "preference_margin", **how).evaluate()
    found = [loss_of(tiny_llama(), p["prompt"], p["rejected"])[0] - loss_of(tiny_llama(), p["prompt"], p["chosen"])[0]
             for p in PAIRS]  # fmt: skip
    assert metrics["eval/reward"] == pytest.approx(np.mean(found), rel=1e-4)


def test_a_run_that_is_resumed_has_the_journal_of_one_that_was_not(tmp_path):
    save_tiny(tmp_path / "base")
    how = {"model": str(tmp_path / "base"), **AUTO, "sigma": 0.02}
    read_run(tmp_path, output_dir=str(tmp_path / "whole"), max_steps=4, **how).train()
    read_run(tmp_path, max_steps=2, **how).train()
    read_run(tmp_path, max_steps=4, **how).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")
    patch = replay.load(tmp_path / "run", "last")
    assert replay.rebuild([patch]).digest() == patch.digest(len(patch))


def test_other_completions_are_another_run(tmp_path):
    read_run(tmp_path, max_steps=1).train()
    other = [{**row, "completion": "no"} for row in ROWS]
    with pytest.raises(Exception, match="data"):
        read_run(tmp_path, other, max_steps=2).train(resume_from_checkpoint=True)


def test_the_page_says_what_was_read(tmp_path):
    read_run(tmp_path, max_steps=2).train()
    page = run_page.write(tmp_path / "run").read_text()
    assert "oneone" in page
    assert "loss of the given completions" in page
    assert "greedy completions" not in page


def test_an_evaluation_reads_what_is_given():
    found = evaluate(engine(), EvalSpec(), ROWS, "log_likelihood")
    losses = [loss_of(tiny_llama(), row["prompt"], row["completion"]) for row in ROWS]
    total = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
    assert found.estimates["loss"].mean == pytest.approx(total, rel=1e-5)
    assert found.sampled == []
    for more in ({"samples": 3}, {"ks": (1,)}, {"success": 0.0}):
        with pytest.raises(ConfigError, match=f"^{next(iter(more))}: .*none are drawn"):
            evaluate(engine(), EvalSpec(**more), ROWS, "log_likelihood")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reward_funcs": ["log_likelihood", quiet_length]}, ConfigError, "one or the other"),
        ({"eval_funcs": quiet_length}, ConfigError, "seedtune eval"),
        ({"engine": "vllm"}, ConfigError, "the logits of given texts"),
        ({"reward_batch": "group"}, ConfigError, "leave it out"),
        ({"num_generations": 2, "temperature": 1.0}, ConfigError, "none are drawn"),
        ({"rows": [{"prompt": "a"}]}, DataError, "no column 'completion'"),
        ({"rows": [{"prompt": "a", "completion": "b" * 300}]}, DataError, "row 1 has 302 tokens"),
        ({"reward_funcs": "preference_margin"}, DataError, "no column 'chosen'"),
        ({"rows": [{**ROWS[0], "logits": 1}]}, RewardError, "column 'logits'"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_loaded(tmp_path, options, error, message):
    reward = reads_outputs(lambda logits, **_: [0.0 for _ in logits])
    funcs = {"reward_funcs": reward} if "logits" in message else {}
    with pytest.raises(error, match=message):
        read_run(tmp_path, **{"max_steps": 1, **funcs, **options})


def test_settings_of_decoding_are_said_to_do_nothing(tmp_path):
    notes = Notes()
    read_run(tmp_path, temperature=0.5, progress=notes)
    notes.stop()
    assert any("temperature" in text and "nothing is decoded" in text for text in notes.texts)


def test_a_function_that_raises_is_shown_with_its_text(tmp_path):
    @reads_outputs
    def fails(completion_logprobs, number, **_):
        if 3 in number:
            raise ValueError("no fours")
        return [0.0] * len(number)

    with pytest.raises(RewardError, match=r"(?s)fails.*say four.*fourfour.*no fours"):
        read_run(tmp_path, reward_funcs=fails, max_steps=1).train()
