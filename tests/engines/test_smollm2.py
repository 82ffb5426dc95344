"""End to end on the real model: SmolLM2-135M-Instruct, from the package that carries it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seedtune import ESConfig, ESTrainer
from seedtune.engines import loading
from seedtune.engines.specs import ModelSpec
from seedtune.report.progress import Progress
from seedtune.tasks.registry import builtin
from seedtune.training import calibration


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An iteration of four members on two prompts, and another after a resume."""
    folder = tmp_path_factory.mktemp("smollm2") / "run"
    task = builtin("conciseness")

    def trainer(steps):
        args = ESConfig(
            output_dir=str(folder), max_steps=steps, population_size=4, antithetic=True, sigma=0.01, learning_rate=0.01,
            max_completion_length=8, eval_steps=0, device="cpu", load_best_model_at_end=False,
        )  # fmt: skip
        return ESTrainer(
            "smollm2-135m-instruct", list(task.rewards), args, task.train[:2], task.test[:2],
            eval_funcs=list(task.gold_metrics), progress=Progress(),
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as monkeypatch:  # how far noise moves the model is measured on less
        monkeypatch.setattr(calibration, "_PROMPTS", 1)
        monkeypatch.setattr(calibration, "_TOKENS", 4)
        trainer(1).train()
        t = trainer(2)
        t.train(resume_from_checkpoint=True)
    return t, folder


def test_the_base_model_gives_sensible_completions():
    model, tokenizer = loading.load(ModelSpec("SmolLM2-135M-Instruct"))
    assert model.dtype == torch.bfloat16
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        out = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids.input_ids.shape[1] :])


def test_every_weight_moves_and_the_digest_is_in_the_journal(trained):
    t, _ = trained
    assert t.engine.center.num_perturbed == sum(p.numel() for p in t.model.parameters()) == 134_515_008
    assert [it.t for it in t.run.journal.iterations] == [1, 2]
    assert t.run.journal.iterations[-1].digest == t.fleet.digest()
    base, _ = loading.load(ModelSpec("smollm2-135m-instruct"))
    moved = [not torch.equal(a, b) for a, b in zip(t.model.parameters(), base.parameters(), strict=True)]
    assert all(moved)


def test_the_checkpoint_loads_in_transformers(trained):
    t, folder = trained
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint-2")
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint-2")
    assert model.dtype == torch.bfloat16
    assert tokenizer.chat_template
    t.engine.restore()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), t.model.parameters(), strict=True))
