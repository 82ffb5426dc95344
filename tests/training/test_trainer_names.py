"""What users of transformers' and TRL's trainers call on one: it is there, or says what to use instead."""

from __future__ import annotations

import copy
import re

import pytest
from transformers import Trainer

from runs import trainer
from seedtune import ESTrainer
from seedtune.config.refused import REFUSED
from seedtune.errors import ConfigError
from seedtune.training.trainer_names import _TABLE, INSTEAD


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return trainer(tmp_path_factory.mktemp("made"))


def test_every_method_of_transformers_trainer_is_there_or_says_what_to_use_instead(made):
    names = {name for name in dir(Trainer) if not name.startswith("_")}
    missing = [name for name in names if not hasattr(made, name)]
    assert len(missing) > 30
    assert [name for name in missing if name not in INSTEAD] == []
    for name in missing:
        with pytest.raises(AttributeError, match=re.escape(f"no attribute {name!r}: {INSTEAD[name]}.")):
            getattr(made, name)


def test_those_of_trl_too(made):
    trl = pytest.importorskip("trl")
    names = {name for name in dir(trl.GRPOTrainer) if not name.startswith("_")}
    assert [name for name in names if not hasattr(made, name) and name not in INSTEAD] == []


def test_settings_and_what_is_refused_as_one(made):
    with pytest.raises(AttributeError, match=r"'temperature': that is a setting, args\.temperature\."):
        made.temperature  # noqa: B018
    with pytest.raises(AttributeError, match=re.escape(REFUSED["beta"])):
        made.beta  # noqa: B018
    with pytest.raises(AttributeError, match=r"^'ESTrainer' object has no attribute 'anything'$"):
        made.anything  # noqa: B018


def test_the_table_names_nothing_twice_and_nothing_that_is_there(made):
    every = [name for line, _ in _TABLE for name in line.split()]
    assert len(every) == len(set(every))
    assert not [name for name in every if name in dir(ESTrainer) or name in vars(made)]


def test_one_process_is_the_zeroth(made):
    assert made.is_world_process_zero()
    assert made.is_local_process_zero()


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("train", {"trial": None}, "no search for settings"),
        ("train", {"ignore_keys_for_eval": None}, "not a model's outputs"),
        ("evaluate", {"eval_dataset": []}, "in Python give ESTrainer train_dataset and eval_dataset"),
        ("evaluate", {"metric_key_prefix": "test"}, "begin with eval/"),
        ("save_model", {"_internal_call": True}, "takes a folder"),
        ("push_to_hub", {"blocking": True}, "finished when this returns"),
    ],
)
def test_arguments_of_transformers_say_why_they_are_none_here(made, method, arguments, says):
    with pytest.raises(ConfigError, match=says):
        getattr(made, method)(**arguments)


def test_a_result_has_numbers_only(tmp_path):
    metrics = trainer(tmp_path, max_steps=1).train().metrics
    assert metrics["step"] == 1
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_what_train_returns_has_no_loss_and_says_so(tmp_path):
    """transformers' is a tuple of global_step, training_loss and metrics."""
    result = trainer(tmp_path, max_steps=1, eval_steps=1).train()
    assert result.global_step == 1
    assert result.metrics["eval/reward"] == pytest.approx(result.metrics["eval/rewards/letters/mean"])
    with pytest.raises(AttributeError, match=r"no attribute 'training_loss': ES has no loss, .* by name"):
        result.training_loss  # noqa: B018
    with pytest.raises(AttributeError, match=r"^'TrainResult' object has no attribute 'loss_of'$"):
        result.loss_of  # noqa: B018
    with pytest.raises(TypeError, match="cannot be unpacked: ES has no loss"):
        _, _, _ = result
    with pytest.raises(TypeError, match="no item 1: ES has no loss"):
        result[1]
    assert copy.deepcopy(result) == result
