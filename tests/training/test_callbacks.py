"""Every callback that ships with transformers works, or is refused with the reason; and all are told what transformers
tells them.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys

import pytest
import transformers
from transformers import (
    DefaultFlowCallback,
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import integration_utils
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from runs import journal_of, trainer
from seedtune import ESConfig
from seedtune.config.es_config import REPORTERS
from seedtune.errors import ConfigError, SeedtuneError
from seedtune.rewards import trainer_state
from seedtune.rewards.call import Batch, call
from seedtune.rewards.function import Reward
from seedtune.rewards.trainer_state import Snapshot
from seedtune.training import callbacks as hooks


class Events(TrainerCallback):
    """Notes what it is told; asks for what `asks` maps an event and a step to."""

    def __init__(self, asks=None):
        self.asks, self.events, self.logs, self.metrics, self.states, self.args = asks or {}, [], [], [], [], None

    def note(self, event, args, state, control, **kwargs):
        self.args = args
        self.events.append((event, state.global_step))
        self.states.append(copy.copy(state))
        self.logs += [kwargs["logs"]] if "logs" in kwargs else []
        self.metrics += [kwargs["metrics"]] if "metrics" in kwargs else []
        for flag in self.asks.get((event, state.global_step), ()):
            setattr(control, flag, True)


for _event in [name for name in vars(TrainerCallback) if name.startswith("on_")]:
    setattr(Events, _event, lambda self, *args, _event=_event, **kwargs: self.note(_event, *args, **kwargs))


# --- what they are told -----------------------------------------------------------------------------------------------


def test_events_come_in_transformers_order(tmp_path):
    told = Events()
    trainer(tmp_path, max_steps=2, eval_steps=2, prompts_per_step=2, callbacks=[told]).train()
    assert told.events == [
        ("on_init_end", 0), ("on_train_begin", 0), ("on_log", 0), ("on_evaluate", 0), ("on_epoch_begin", 0),
        ("on_step_begin", 0), ("on_pre_optimizer_step", 0), ("on_optimizer_step", 0), ("on_log", 1), ("on_step_end", 1),
        ("on_step_begin", 1), ("on_pre_optimizer_step", 1), ("on_optimizer_step", 1), ("on_log", 2), ("on_step_end", 2),
        ("on_epoch_end", 2), ("on_log", 2), ("on_evaluate", 2), ("on_save", 2), ("on_train_end", 2),
    ]  # fmt: skip


def test_metrics_have_transformers_names(tmp_path):
    told = Events()
    t = trainer(tmp_path, max_steps=1, eval_steps=1, callbacks=[told])
    t.train()
    assert set(told.metrics[-1]) >= {"eval_reward", "eval_rewards/letters/mean", "eval_loss", "eval/reward"}
    for logs in (*told.logs, *t.state.log_history):
        assert not [name for name in logs if name.startswith("eval/")]
        assert ("loss" in logs) != ("eval_loss" in logs)
    assert [line["step"] for line in t.state.log_history] == [0, 1, 1]
    assert told.logs[1]["loss"] == -told.logs[1]["reward"]
    assert "control" not in t.state.log_history[1]


def test_arguments_have_all_that_transformers_have(tmp_path):
    told = Events()
    t = trainer(tmp_path, max_steps=1, eval_steps=0, callbacks=[told])
    t.train()
    for f in dataclasses.fields(TrainingArguments):
        getattr(told.args, f.name)
    args = told.args
    assert isinstance(args, ESConfig)
    assert (args.eval_strategy, args.logging_steps, args.world_size, args.eval_steps) == ("steps", 1, 1, 1)
    assert (args.metric_for_best_model, args.greater_is_better, args.population_size) == ("reward", True, 4)
    assert args.per_device_train_batch_size == 16
    assert args.device == "cpu"
    for same in (copy.deepcopy(args), pickle.loads(pickle.dumps(args))):  # noqa: S301
        assert (same.to_json_string(), same.warmup_steps, same.fsdp) == (args.to_json_string(), 0, None)
    with pytest.raises(
        AttributeError, match="neither Seedtune's settings nor transformers' TrainingArguments have 'x'"
    ):
        args.x  # noqa: B018


# --- what they ask for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["on_step_begin", "on_log", "on_step_end", "on_epoch_end"])
def test_what_is_asked_for_at_any_event_is_done(tmp_path, event):
    step = 1 if event == "on_step_begin" else 2
    told = Events({(event, step): ["should_evaluate", "should_save"]})
    trainer(tmp_path, max_steps=5, eval_steps=0, callbacks=[told]).train()
    assert [e for e in told.events if e[0] in ("on_evaluate", "on_save")] == [
        ("on_evaluate", 0), ("on_evaluate", 2), ("on_save", 2), ("on_evaluate", 5), ("on_save", 5),
    ]  # fmt: skip
    assert (tmp_path / "run" / "checkpoint-2").is_dir()


def test_a_stop_does_not_stick(tmp_path):
    trainer(tmp_path, output_dir=str(tmp_path / "whole"), max_steps=4).train()
    told = Events({("on_step_end", 1): ["should_training_stop"]})
    t = trainer(tmp_path, max_steps=4, callbacks=[told])
    assert t.train().global_step == 1
    result = t.train(resume_from_checkpoint=True)
    assert (result.global_step, result.why) == (4, "Done: 4 iterations.")
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")


# --- those of transformers --------------------------------------------------------------------------------------------


def flat(completions, **kwargs):
    return [0.5] * len(completions)


def risen(completions, trainer_state, **kwargs):
    return [float(min(trainer_state.global_step, 2))] * len(completions)


@pytest.mark.parametrize(
    "metric", [None, "reward", "eval_reward", "eval/reward", "rewards/risen/mean", "eval_loss", "loss"]
)
def test_early_stopping(tmp_path, metric):
    options = {"reward_funcs": risen, "metric_for_best_model": metric, "load_best_model_at_end": True}
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    t = trainer(tmp_path, max_steps=9, eval_steps=1, callbacks=[stopping], **options)
    assert "callback ended the run after iteration 4" in t.train().why
    assert t.state.best_metric == (-2 if metric in ("loss", "eval_loss") else 2)


@pytest.mark.parametrize("options", [{}, {"guard": True}, {"load_best_model_at_end": True}])
def test_early_stopping_whatever_is_tracked(tmp_path, options):
    t = trainer(tmp_path, reward_funcs=flat, max_steps=9, eval_steps=2, callbacks=EarlyStoppingCallback, **options)
    assert t.train().global_step == 2


class Anything:
    """Stands for a package."""

    __version__, __path__ = "3.0", []
    MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH = 250, 100

    def __getattr__(self, name):
        return Anything()

    def __call__(self, *args, **kwargs):
        return Anything()

    def __iter__(self):
        return iter(())

    def __getitem__(self, name):
        return Anything()

    def __setitem__(self, name, value):
        pass

    def __delattr__(self, name):
        vars(self).pop(name, None)


pytestmark = pytest.mark.filterwarnings("ignore:The NeptuneCallback is deprecated")

PACKAGES = (
    "wandb wandb.sdk wandb.sdk.lib wandb.sdk.lib.config_util trackio comet_ml azureml azureml.core azureml.core.run "
    "mlflow dagshub dagshub.upload neptune neptune.utils neptune.exceptions neptune.internal neptune.internal.utils "
    "neptune.new neptune.new.metadata_containers neptune.new.metadata_containers.run codecarbon clearml flytekit "
    "flytekitplugins flytekitplugins.deck flytekitplugins.deck.renderer dvclive dvclive.plots dvclive.utils swanlab"
).split()


@pytest.fixture
def packages(monkeypatch, tmp_path):
    for name in vars(integration_utils).copy():
        if name.startswith("is_") and name.endswith("_available") and "torch" not in name:
            # These modules keep whatever they find at the first look, so that it is to be the real one.
            getattr(transformers, name, None), getattr(transformers.integrations, name, None)
            monkeypatch.setattr(integration_utils, name, lambda *_: True)
    monkeypatch.setattr(integration_utils, "_is_comet_installed", True)
    monkeypatch.setattr(integration_utils, "_is_comet_recent_enough", True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "owner" / "name.mlflow"))
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, Anything())
    sys.modules["neptune"].Run = sys.modules["dvclive"].Live = Anything  # classes


@pytest.mark.parametrize("name", sorted({*integration_utils.INTEGRATION_TO_CALLBACK} - {"tensorboard"}))
def test_reporters(tmp_path, packages, name):
    t = trainer(tmp_path, report_to=name, max_steps=2, save_steps=1, save_total_limit=1, load_best_model_at_end=True)
    assert t.train().global_step == 2
    assert name in REPORTERS


def test_reporters_are_all_that_transformers_have():
    assert set(REPORTERS) == set(integration_utils.INTEGRATION_TO_CALLBACK)


def test_all_the_others(tmp_path, capsys, monkeypatch):
    for name in ("IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, Anything())
    from transformers.utils.notebook import NotebookProgressCallback

    shipped = [DefaultFlowCallback, ProgressCallback, PrinterCallback, NotebookProgressCallback]
    result = trainer(tmp_path, max_steps=2, eval_steps=1, save_steps=1, callbacks=shipped).train()
    assert result.why == "Done: 2 iterations."
    assert "'eval_reward': " in capsys.readouterr().out


def test_none_is_forgotten():
    """A callback that transformers gains is to be tried here."""

    def below(kind):
        return {kind, *(sub for one in kind.__subclasses__() for sub in below(one))}

    kinds = {k for k in below(TrainerCallback) if k.__module__.startswith("transformers.")}
    tried = {DefaultFlowCallback, ProgressCallback, PrinterCallback, EarlyStoppingCallback, JITCheckpointCallback}
    others = {k.__name__ for k in kinds - tried - {*integration_utils.INTEGRATION_TO_CALLBACK.values()}}
    assert others <= {"TrainerCallback", "CallbackHandler", "NotebookProgressCallback", "NeptuneMissingConfiguration"}


@pytest.mark.parametrize(
    ("callback", "says"),
    [
        (JITCheckpointCallback, "saves at SIGTERM"),
        (lambda: EarlyStoppingCallback(), "TrainerCallbacks, or their classes; got <function"),
        (5, "TrainerCallbacks, or their classes; got 5"),
        (print, "got <built-in function print>"),
        (int, "got <class 'int'>"),
        (integration_utils.WandbCallback, "requires wandb to be installed"),
        (integration_utils.SwanLabCallback, "requires swanlab to be installed"),
    ],
)
def test_what_is_refused_at_construction(tmp_path, callback, says):
    with pytest.raises(ConfigError, match=says):
        trainer(tmp_path, callbacks=[callback])
    t = trainer(tmp_path)
    with pytest.raises(ConfigError, match=says):
        t.add_callback(callback)


def test_what_makes_a_trainer_of_transformers_is_refused(tmp_path, packages, monkeypatch):
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    with pytest.raises(ConfigError, match=r"WandbCallback cannot be used: .*WANDB_LOG_MODEL=false"):
        trainer(tmp_path, report_to="wandb")
    with pytest.raises(ConfigError, match="DVCLiveCallback cannot be used: "):
        trainer(tmp_path, callbacks=[integration_utils.DVCLiveCallback(log_model=True)])
    with pytest.raises(ConfigError, match="NeptuneCallback cannot be used: To save the best"):
        trainer(tmp_path, callbacks=[integration_utils.NeptuneCallback(log_checkpoints="best")])


def test_early_stopping_without_evaluations_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="EarlyStoppingCallback cannot be used: with eval_steps: 0"):
        trainer(tmp_path, eval_steps=0, callbacks=[EarlyStoppingCallback()])


def test_callbacks_come_and_go(tmp_path):
    t = trainer(tmp_path, callbacks=[PrinterCallback])
    assert isinstance(t.pop_callback(PrinterCallback), PrinterCallback)
    assert t.pop_callback(PrinterCallback) is None
    t.add_callback(ProgressCallback)
    t.remove_callback(ProgressCallback)
    assert [type(c) for c in t.callback_handler.callbacks] == [hooks.OwnFlow]
    assert isinstance(t.callback_handler, CallbackHandler)


# --- trainer_state ----------------------------------------------------------------------------------------------------


def test_reward_functions_have_the_fields_of_transformers_state():
    ours, theirs = (
        {f.name for f in dataclasses.fields(kind)} for kind in (trainer_state.TrainerState, TrainerState)
    )  # fmt: skip
    assert ours == theirs, f"transformers {transformers.__version__}"
    assert vars(trainer_state.TrainerState()) == vars(TrainerState())


def test_they_see_the_state_as_it_is(tmp_path):
    """In a worker as in the run's own process, and after a resume."""
    numbers = (
        "global_step max_steps epoch num_train_epochs eval_steps save_steps logging_steps train_batch_size "
        "num_input_tokens_seen total_flos"
    ).split()

    def follows(completions, trainer_state, log_metric, **kwargs):
        s = trainer_state
        for name in numbers:
            log_metric(f"state/{name}", getattr(s, name))
        log_metric("state/lines", len(s.log_history))
        log_metric("state/last", s.log_history[-1]["step"] if s.log_history else -1)
        log_metric("state/best", -1 if s.best_metric is None else s.best_metric)
        s.log_history.append("of this call only")
        assert s.is_world_process_zero
        assert s.is_local_process_zero
        assert "TrainerControl" in s.stateful_callbacks
        return [sum(c.count(x) for x in "aeiounrst") / 12 for c in completions]

    options = {"reward_funcs": follows, "prompts_per_step": 2, "eval_steps": 2, "max_steps": 3}
    for name, more in (("a", {"reward_workers": 0}), ("b", {"reward_workers": 1})):
        t = trainer(tmp_path, output_dir=str(tmp_path / name), **options, **more)
        t.train()
    assert journal_of(tmp_path, "a") == journal_of(tmp_path, "b")
    trainer(tmp_path, **{**options, "max_steps": 2}).train()
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    keys = [k for k in t.run.history[-1] if k.startswith("eval/state/") and not k.endswith("num_train_epochs")]
    assert {k: t.run.history[-1][k] for k in keys} == {k: resumed.run.history[-1][k] for k in keys}
    at_three = {k.removeprefix("state/"): v for k, v in t.run.history[4].items() if k.startswith("state/")}
    tokens = t.run.history[2]["num_tokens"]
    assert at_three == {
        "global_step": 2, "max_steps": 3, "epoch": 1, "num_train_epochs": 2, "eval_steps": 2, "save_steps": 3,
        "logging_steps": 1, "train_batch_size": 8, "num_input_tokens_seen": tokens,
        "total_flos": 2 * t.model.num_parameters() * tokens, "lines": 4, "last": 2,
        "best": t.run.history[0]["eval/reward"],
    }  # fmt: skip


def test_the_state_is_pickled_once(monkeypatch):
    snapshot = Snapshot(global_step=3, log_history=[{"reward": 1.0}])
    sent = [pickle.dumps(Batch(["q"], ["a"], [[1]], {}, snapshot)) for _ in range(2)]
    monkeypatch.setattr(trainer_state.cloudpickle, "dumps", None)
    assert pickle.dumps(Batch(["q"], ["a"], [[1]], {}, snapshot)) == sent[0]
    first, second = (pickle.loads(data).state for data in sent)  # noqa: S301
    assert first is second
    assert first == snapshot
    assert pickle.dumps(first) == pickle.dumps(snapshot)
    assert call(
        Reward(lambda trainer_state, **k: [trainer_state.global_step]), Batch([], ["a"], [], {}, first)
    ).rewards == [3]


# --- callbacks that fail ----------------------------------------------------------------------------------------------


class Fails(TrainerCallback):
    def __init__(self, does):
        self.does = does

    def on_step_end(self, args, state, control, **kwargs):
        return self.does() if state.global_step == 2 else None


def fail():
    raise RuntimeError("own")


def test_what_a_callback_raises_says_what_is_safe(tmp_path):
    with pytest.raises(RuntimeError, match="own") as e:
        trainer(tmp_path, callbacks=[Fails(fail)]).train()
    assert e.value.__notes__ == [f"2 iterations are safe in {tmp_path}/run/journal.jsonl; resume goes on from there."]
    assert trainer(tmp_path).train(resume_from_checkpoint=True).global_step == 3


def test_what_a_callback_returns_is_control_or_nothing(tmp_path):
    with pytest.raises(ConfigError, match="a callback returned True from on_step_end: return control, or nothing"):
        trainer(tmp_path, callbacks=[Fails(lambda: True)]).train()


def test_a_tracker_that_fails_is_named(tmp_path, monkeypatch):
    def down(self, *args, **kwargs):
        raise ConnectionError("no route to host")

    callback = integration_utils.TensorBoardCallback
    monkeypatch.setattr(callback, "_init_summary_writer", down)
    with pytest.raises(SeedtuneError, match=r"report_to: ConnectionError in on_train_begin: no route.*metrics\.jsonl"):
        trainer(tmp_path, report_to="tensorboard").train()
