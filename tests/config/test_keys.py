"""Keys of TRL, transformers and others: each is a setting or is refused with its reason, and all at once."""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings
from pathlib import Path

import pytest
from transformers import TrainingArguments

from seedtune import ESConfig, ESTrainer
from seedtune.cli.main import main
from seedtune.config import refused
from seedtune.config.refused import REFUSED
from seedtune.config.run_config import RunConfig
from seedtune.config.yaml_file import read
from seedtune.errors import ConfigError

OURS = {f.name for f in dataclasses.fields(RunConfig)}
#: What TRL's classes have besides transformers' own, as of the version named in it.
TRL = json.loads((Path(__file__).parents[1] / "data" / "trl_keys.json").read_text())


def complaint(**settings):
    with pytest.raises(ConfigError) as e:
        RunConfig(**settings)
    return str(e.value)


def names(cls):
    return [f.name for f in dataclasses.fields(cls)]


@pytest.mark.parametrize(
    "key",
    [*names(TrainingArguments), *(n for of in TRL if of not in ("version", "GRPOTrainer") for n in TRL[of])],
)
def test_every_key_of_transformers_and_trl_is_a_setting_or_refused_with_its_reason(key):
    assert key in OURS or REFUSED[key] in complaint(**{key: 1})


def test_every_argument_of_trls_trainer_is_one_or_refused_with_its_reason():
    own = inspect.signature(ESTrainer.__init__).parameters
    strange = {name: None for name in TRL["GRPOTrainer"] if name not in own}
    with pytest.raises(ConfigError) as e:
        ESTrainer("nowhere", **strange)
    assert len(strange) > 3
    assert all(f"{name}: {REFUSED[name]}" in str(e.value) for name in strange)


def test_the_list_of_trls_keys_is_that_of_the_installed_version():
    trl = pytest.importorskip("trl")
    from trl.scripts.grpo import GRPOScriptArguments

    if trl.__version__ != TRL["version"]:
        pytest.skip(f"tests/data/trl_keys.json is of TRL {TRL['version']}, and {trl.__version__} is installed")
    classes = [trl.GRPOConfig, GRPOScriptArguments, trl.ModelConfig, trl.DatasetMixtureConfig]
    base = set(names(TrainingArguments))
    for cls in classes:
        assert [n for n in names(cls) if cls is not trl.GRPOConfig or n not in base] == TRL[cls.__name__]
    assert [n for n in inspect.signature(trl.GRPOTrainer.__init__).parameters if n != "self"] == TRL["GRPOTrainer"]


def test_each_refused_name_stands_in_one_line_of_the_table():
    every = [name for line, _ in refused._TABLE for name in line.split()]
    assert len(every) == len(set(every))
    assert not {n for n in OURS if n in REFUSED} - set(inspect.signature(ESTrainer.__init__).parameters) - {
        "model_name_or_path", "task", "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split",
        "max_train_samples", "max_eval_samples",
    }  # in Python they are arguments of ESTrainer  # fmt: skip


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("populaton_size", "population_size"), ("max_step", "max_steps"), ("MaxSteps", "max_steps"), ("rnak", "rank"),
        ("sgma", "sigma"), ("eval-steps", "eval_steps"), ("vllm_gpu_memory_utilisation", "vllm_gpu_memory_utilization"),
    ],
)  # fmt: skip
def test_a_misspelling_is_told(key, meant):
    assert complaint(**{key: 1}) == f"unknown setting {key!r}. Did you mean {meant!r}?"


@pytest.mark.parametrize(
    "key",
    [
        "torch_dtype", "max_seq_length", "stop", "top_n", "min_k", "generation_size", "hub_something", "stop_tokens",
        "presence_penalty", "share_gpu", "num_samples", "eval_batches", "save_limit", "warmup", "prompts", "kl",
    ],
)  # fmt: skip
def test_no_hint_leads_to_a_setting_that_means_something_else(key):
    assert "Did you mean" not in complaint(**{key: 1})


def test_a_misspelt_key_of_grpo_is_explained():
    assert "Did you mean 'num_iterations'? That is no setting here: each rollout" in complaint(num_iteration=8)


def test_all_wrong_keys_are_told_at_once():
    said = complaint(beta=0.1, max_step=1, foo=2, sigma="never looked at")
    assert said.startswith("3 settings cannot be used. `seedtune train --help` lists all settings.\n")
    for line in (f"beta: {REFUSED['beta']}", "max_step: unknown, did you mean 'max_steps'?", "foo: unknown"):
        assert f"\n  {line}\n" in said + "\n"


def test_all_wrong_values_are_told_at_once():
    said = complaint(max_steps="ten", antithetic="maybe", sigma="x")
    assert [line.split()[0] for line in said.splitlines()] == ["max_steps", "sigma", "antithetic"]
    said = complaint(max_steps=0, rank=-1, noise="pink")
    assert {line.split()[0] for line in said.splitlines()} == {"max_steps", "rank", "noise"}


def test_wrong_keys_of_file_and_command_line_are_told_together(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("task: conciseness\nlogging_steps: 1\nuse_vllm: true\nstop_strngs: a\n")
    flags = ["--beta", "0.1", "--max-step=3"]
    for command in ("train", "preflight"):
        assert main([command, "--config", str(tmp_path / "c.yaml"), *flags]) == 2
        said = capsys.readouterr().err
        assert said.startswith("seedtune: error: 5 settings cannot be used.")
        assert all(f"  {key}: " in said for key in ("logging_steps", "use_vllm", "stop_strngs", "beta", "max_step"))


def test_a_flag_of_another_command_is_not_unknown(capsys):
    assert main(["generate", "nowhere", "hello", "--max_steps", "3"]) == 2
    assert "--max_steps: not for this command" in capsys.readouterr().err
    assert main(["eval", "nowhere", "--config", "c.yaml"]) == 2
    assert "--config: not for this command" in capsys.readouterr().err


def test_a_key_that_is_there_twice_is_told(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("max_steps: 1\nsigma: 1\nmax-steps: 2\n")
    with pytest.raises(ConfigError, match=r"given more than once: max_steps \(lines 1 and 3\)"):
        read(file)
    file.write_text(
        "max_steps: 1\nreward_args:\n  f: {a: 1, b-c: 2, b_c: 3}\n  f: {a: 1}\ncurriculum: {low: 0, low: 1}\n"
    )
    with pytest.raises(ConfigError, match=r"low \(lines 5 and 5\), f \(lines 3 and 4\)"):
        read(file)
    file.write_text("task_args: &again [*again]\n")  # holds itself
    assert read(file)["task_args"]


def explained(args):
    with pytest.raises(ConfigError, match="args must be an ESConfig") as e:
        ESTrainer("nowhere", args=args)
    return str(e.value).splitlines()


def test_training_arguments_as_args():
    args = TrainingArguments(
        "o", max_steps=4, per_device_train_batch_size=2, bf16_full_eval=True, save_strategy="epoch", use_cpu=True,
        learning_rate=1e-3, report_to="none", lr_scheduler_type="cosine", eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    said = explained(args)
    assert said[1] == "  ESConfig(output_dir='o', max_steps=4, lr_scheduler_type='cosine', eval_steps=2)"
    keys = [line.split()[0].rstrip(":") for line in said[3:]]
    assert sorted(keys) == [
        "bf16_full_eval", "eval_strategy", "learning_rate", "per_device_train_batch_size", "save_strategy", "use_cpu",
    ]  # fmt: skip


def test_a_grpo_config_as_args():
    trl = pytest.importorskip("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = trl.GRPOConfig(
            "o", use_cpu=True, bf16=False, per_device_train_batch_size=4, gradient_accumulation_steps=4, beta=0.01,
            num_generations=4, temperature=0.7,
        )  # fmt: skip
    said = explained(args)
    assert said[1] == "  ESConfig(output_dir='o', temperature=0.7)"
    keys = {line.split()[0].rstrip(":") for line in said[3:]}
    assert keys == {
        "use_cpu", "bf16", "per_device_train_batch_size", "gradient_accumulation_steps", "beta", "num_generations",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "says"), [({"output_dir": "o", "beta": 1}, "ESConfig(output_dir='o')"), (3, "got int")]
)
def test_other_things_as_args(args, says):
    assert says in "\n".join(explained(args))


def test_a_setting_as_an_argument_of_the_trainer():
    with pytest.raises(ConfigError, match=r"'max_steps' is no argument here: write args=ESConfig\(max_steps=...\)"):
        ESTrainer("nowhere", max_steps=3)
    with pytest.raises(ConfigError, match="Did you mean 'reward_funcs'"):
        ESTrainer("nowhere", reward_func=len)
    assert ESConfig().max_steps == 100
