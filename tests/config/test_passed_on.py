"""Settings that hold others (`generation_kwargs`, `model_init_kwargs`), and what they lead to."""

from __future__ import annotations

import pytest
import torch

from runs import Notes, config, plain, trained, trainer
from seedtune import ESConfig
from seedtune.config.run_config import RunConfig
from seedtune.config.yaml_file import read, to_yaml
from seedtune.errors import ConfigError, JournalError
from seedtune.training import factory
from tiny_engine import WORDS, alone, engine


def test_generation_kwargs_are_the_settings_themselves(tmp_path):
    args = RunConfig(
        generation_kwargs={
            "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": "0.1", "repetition_penalty": 2, "stop": "</s>",
            "max_new_tokens": 5,
        }, top_k=3,
    )  # fmt: skip
    assert args == RunConfig(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=2.0, stop_strings=["</s>"],
        max_completion_length=5,
    )  # fmt: skip
    assert ESConfig(generation_kwargs='{"min_p": 0.2}').min_p == 0.2  # JSON, as transformers takes it
    (tmp_path / "c.yaml").write_text(to_yaml(args))
    assert RunConfig(**read(tmp_path / "c.yaml")) == args


def test_model_init_kwargs_are_the_settings_themselves():
    given = {"revision": "v1", "trust_remote_code": True, "torch_dtype": torch.float16, "attn_implementation": "eager"}
    own = {"model_revision": "v1", "trust_remote_code": True, "dtype": "float16", "attn_implementation": "eager"}
    assert ESConfig(model_init_kwargs=given) == ESConfig(**own)
    assert ESConfig(model_init_kwargs={"dtype": "bfloat16"}, dtype="float32").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"generation_kwargs": {"num_beams": 2, "bogus": 1}}, "generation_kwargs: num_beams: completions are"),
        ({"generation_kwargs": {"num_beams": 2, "bogus": 1}}, "generation_kwargs: bogus: unknown"),
        ({"generation_kwargs": {"suppress_tokens": [1]}}, "generation_kwargs takes temperature, top_p, top_k, min_p"),
        ({"generation_kwargs": {"do_sample": True}}, "set temperature; 0 is greedy"),
        ({"generation_kwargs": {"min_p": 2}}, "min_p must be between 0 and 1"),
        ({"generation_kwargs": {"top_k": "many"}}, "generation_kwargs: top_k must be a whole number"),
        ({"generation_kwargs": "top_k"}, "generation_kwargs must be a mapping"),
        ({"model_init_kwargs": {"device_map": "auto"}}, "set device"),
        ({"model_init_kwargs": {"quantization_config": 1, "use_cache": False}}, "quantization_config: give a model"),
        ({"model_init_kwargs": {"dtype": "auto"}}, "dtype must be one of"),
        ({"repetition_penalty": 0}, "greater than 0"),
        ({"stop_strings": ["a", ""]}, "empty text"),
        ({"stop_strings": [3]}, "stop_strings must be a list of texts"),
        ({"min_p": -0.1}, "min_p must be between 0 and 1"),
        ({"max_prompt_length": 0}, "max_prompt_length must be at least 1"),
        ({"engine": "vllm", "attn_implementation": "eager"}, "for engine: hf"),
        ({"hub_strategy": "always"}, "hub_strategy must be one of end, every_save"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be(settings, says):
    with pytest.raises(ConfigError) as e:
        ESConfig(**settings)
    assert says in str(e.value)


SAMPLED = {
    "temperature": 1.0, "min_p": 0.02, "repetition_penalty": 1.3, "stop_strings": ["a", "e"], "max_prompt_length": 3,
    "reward_funcs": plain,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["full", "lowrank"])
def test_a_run_repeats_and_its_journal_holds_how_it_sampled(tmp_path, kind):
    options = {**SAMPLED, "perturbation": kind, "scope": "linear"}
    whole = trained(tmp_path, "whole", **options)
    assert (whole / "journal.jsonl").read_bytes() == (
        trained(tmp_path, "again", **options) / "journal.jsonl"
    ).read_bytes()
    part = trained(tmp_path, "part", **{**options, "max_steps": 2})
    resumed = {**options, "model": str(tmp_path / "base"), "output_dir": str(part)}
    for name, value in (
        ("min_p", None), ("repetition_penalty", 1.0), ("stop_strings", ["a"]), ("max_prompt_length", 4),
        ("temperature", 0.9),
    ):  # fmt: skip
        with pytest.raises(JournalError, match=name):
            trainer(tmp_path, **{**resumed, name: value}).train(resume_from_checkpoint=True)
    trainer(tmp_path, **resumed).train(resume_from_checkpoint=True)
    assert (part / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()
    other = trained(tmp_path, "other", **{**options, "repetition_penalty": 1.0})
    assert (other / "journal.jsonl").read_bytes() != (whole / "journal.jsonl").read_bytes()


def test_settings_of_sampling_are_noted_where_nothing_is_sampled(tmp_path):
    notes = Notes()
    factory.sampling(config(tmp_path, min_p=0.1, top_k=3, repetition_penalty=1.5), None)
    factory.sampling(config(tmp_path, min_p=0.1, temperature=1.0), None)
    notes.stop()
    assert notes.texts == ["top_k, min_p: ignored: only applies when sampling, and temperature is 0 (greedy)."]


def test_of_long_prompts_the_end_is_read():
    notes = Notes()
    e = engine(max_prompt_length=5)
    prompts = e.encode(["hello", "goodbye", "hi"], 4)
    assert e.tokenizer.batch_decode([p.ids for p in prompts]) == ["hello", "odbye", "hi"]
    assert [p.content for p in prompts] == ["hello", "goodbye", "hi"]
    notes.stop()
    assert len(notes.texts) == 1
    assert "1 of 3 prompts have more than 5 tokens (max_prompt_length)" in notes.texts[0]
    assert len(e.encode(["goodbye"], 0, truncate=True)[0].ids) == 7  # probes are not prompts
    assert len(e.encode(["x" * 300], 40)[0].ids) == 5  # it would not fit the context


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_as_asked(implementation):
    e = engine(attn_implementation=implementation)
    assert e.model.config._attn_implementation == implementation
    prompts = e.encode(WORDS, 12)
    assert [c.ids for c in e.generate(prompts, factory.Sampling(12), 0)] == [alone(e, p) for p in prompts]


@pytest.mark.parametrize("implementation", ["flash_attention_2", "nothing_like_this"])
def test_attention_that_is_not_there_is_refused(implementation):
    with pytest.raises(ConfigError, match=f"attn_implementation: {implementation} cannot be used"):
        engine(attn_implementation=implementation)
