"""Settings: what is written is read again, kinds are checked, the constructor explains itself."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import SchedulerType
from transformers.trainer_utils import SaveStrategy

from runs import Notes
from seedtune import ESConfig
from seedtune.config.auto import AUTO
from seedtune.config.run_config import RunConfig
from seedtune.config.values import parse_rule
from seedtune.config.yaml_file import read, to_yaml
from seedtune.errors import ConfigError
from seedtune.training import factory


def test_what_a_run_writes_it_can_read(tmp_path):
    config = RunConfig(
        sigma=1e-4, stop_at=["eval/reward > -1e1", "kl >= 5"],
        chat_template_kwargs={"enable_thinking": False, "a": None}, reward_weights=[1, 0.5],
        report_to=["tensorboard"], seed=2**64 - 1, run_name="a: 'b' # c", device="cuda:1",
        reward_funcs=["a.py:f"], output_dir="~/x y",
    )  # fmt: skip
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert RunConfig(**read(tmp_path / "c.yaml")) == config


def test_numbers_that_yaml_reads_as_text():
    assert ESConfig(sigma="1e-3").sigma == 0.001
    assert ESConfig(max_steps=10.0).max_steps == 10
    assert ESConfig(**yaml.safe_load("learning_rate: 5e-4")).alpha == 0.0005


def test_values_of_enumerations_numpy_and_torch_are_pythons_own():
    given = {
        "lr_scheduler_type": SchedulerType.COSINE, "save_strategy": SaveStrategy.NO, "dtype": torch.float16,
        "device": torch.device("cpu"), "max_steps": np.int64(3), "sigma": torch.tensor(0.5),
        "antithetic": np.bool_(True), "run_name": np.str_("a"), "reward_weights": np.array([1, 2]),
    }  # fmt: skip
    made = ESConfig(**given)
    plain = {"lr_scheduler_type": "cosine", "save_strategy": "no", "dtype": "float16", "device": "cpu", "max_steps": 3,
             "sigma": 0.5, "antithetic": True, "run_name": "a", "reward_weights": [1, 2]}  # fmt: skip
    assert made == ESConfig(**plain)
    assert {type(getattr(made, name)) for name in plain} == {str, int, float, bool, list}
    assert ESConfig(**yaml.safe_load(to_yaml(made))) == made


def test_whole_numbers_as_users_write_them():
    assert [ESConfig(max_steps=text).max_steps for text in ("1e3", "1_000", " 1000 ", 1e3)] == [1000] * 4
    with pytest.raises(ConfigError, match=r"max_steps must be a whole number, got '1\.5'"):
        ESConfig(max_steps="1.5")


def test_words_of_yaml():
    assert ESConfig(**yaml.safe_load("save_strategy: no\nreport_to: off")).save_strategy == "no"
    assert ESConfig(report_to=None).reporters == ESConfig(**yaml.safe_load("report_to: no")).reporters == []
    assert ESConfig(antithetic="True").antithetic
    assert not ESConfig(antithetic="false").antithetic


@pytest.mark.parametrize("name", ["chat_template_kwargs", "reward_args", "curriculum"])
def test_mappings_that_cannot_be_written_are_told_before_anything_runs(name):
    with pytest.raises(ConfigError, match=f"{name} is written into the run's folder"):
        ESConfig(**{name: {"f": print}})


@pytest.mark.parametrize("line", ["run_name: 007", "model_revision: 1.0", "run_name: 2026-01-01", "dtype: off",
                                  "stop_strings: [no]"])  # fmt: skip
def test_text_that_yaml_reads_as_something_else_wants_quotes(line):
    with pytest.raises(ConfigError, match="In YAML, text that reads as something else stands in quotes"):
        ESConfig(**yaml.safe_load(line))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_steps": 1.5}, {"max_steps": True}, {"max_steps": "ten"}, {"max_steps": 0}, {"sigma": "nan"},
        {"sigma": -1}, {"sigma": None}, {"antithetic": 1}, {"stop_at": [3]}, {"reward_weights": ["a"]},
        {"chat_template_kwargs": "x"},
        {"seed": -1}, {"top_p": 0}, {"device": "gpu"}, {"report_to": "comet"}, {"weight_decay": 1, "anchor_decay": 1},
        {"temperature": -1}, {"stop_at": "eval/reward = 5"}, {"output_dir": None},
        {"output_dir": ""}, {"dtype": "int8"},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_cannot_be(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ESConfig(**bad)


def test_what_is_measured_where_nothing_is_said_of_members_and_steps():
    found = ESConfig.auto(output_dir="somewhere", max_steps=7)
    assert (found.sigma, found.learning_rate, found.perturbation) == ("auto", "auto", "lowrank")
    assert found == ESConfig(output_dir="somewhere", max_steps=7, **AUTO)
    assert ESConfig.auto(sigma=0.1) == ESConfig(sigma=0.1)
    assert ESConfig.auto(max_steps=7).output_dir == ESConfig().output_dir
    with pytest.raises(ConfigError, match="max_steps"):
        ESConfig.auto(max_step=7)


def test_the_constructor_suggests_the_nearest_key():
    with pytest.raises(ConfigError, match="Did you mean 'population_size'"):
        ESConfig(populaton_size=3)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"dataclasses\.replace\(args, sigma=\.\.\.\)"):
        ESConfig().sigma = 1
    assert dataclasses.replace(ESConfig(), sigma=1).sigma == 1


def test_rules():
    assert parse_rule("eval/rewards/f/mean>=-1.5e-1") == ("eval/rewards/f/mean", ">=", -0.15)


def test_paths_and_counts_are_not_part_of_learning():
    learning = ESConfig().trajectory_config()
    assert not {"output_dir", "max_steps", "eval_steps", "report_to", "threads", "device"} & set(learning)
    assert {"sigma", "seed", "scope", "max_completion_length", "generation_batch_size"} <= set(learning)


def test_settings_of_a_fleet_without_one_are_noted():
    notes = Notes()
    for options in ({"replicas": 2}, {"drop_stragglers": 1}, {}):
        factory.fleet(SimpleNamespace(mixes_members=False), "model", None, ESConfig(**options))
    notes.stop()
    assert notes.texts == [f"{n}: ignored: only applies with fleet: ray." for n in ("replicas", "drop_stragglers")]


def test_a_replica_has_the_gpus_that_its_model_is_spread_over():
    with pytest.raises(ConfigError, match="vllm_tensor_parallel_size: for engine: vllm only"):
        ESConfig(vllm_tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="set CUDA_VISIBLE_DEVICES"):
        ESConfig(engine="vllm", device="cuda:1")
    assert ESConfig(fleet="ray", replica_gpus=0.5).replica_gpus == 0.5
    spread = {"engine": "vllm", "vllm_tensor_parallel_size": 2, "fleet": "ray"}
    with pytest.raises(ConfigError, match="set replica_gpus: 2, not 1"):
        ESConfig(**spread, replica_gpus=1)
    assert ESConfig(**spread, replica_gpus=2).replica_gpus == 2


def test_a_learning_rate_of_gradients_is_noticed():
    notes = Notes()
    for perturbation, rate in (("full", 5e-6), ("lowrank", 1e-5), ("full", 5e-4), ("full", None)):
        factory.note_unused(ESConfig(sigma=0.001, learning_rate=rate, perturbation=perturbation))
    notes.stop()
    assert [text.split(" is far below")[0] for text in notes.texts] == ["learning_rate 5e-06", "learning_rate 1e-05"]
    assert [text.split("it is ")[1] for text in notes.texts] == ["half of sigma.", "2 sigma."]
