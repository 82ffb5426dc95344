"""transformers' callbacks in a run of Evolution Strategies: which are called, and the arguments, metrics and state that
they are given, under transformers' names.
"""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    EarlyStoppingCallback,
    ExportableState,
)
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..config.es_config import ESConfig
from ..errors import ConfigError

Given = TrainerCallback | type[TrainerCallback]


class OwnFlow(DefaultFlowCallback):
    """transformers wants a flow callback; here the trainer itself decides when to evaluate and to save."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Nothing: `ESTrainer` sets the control before."""

    on_epoch_end = on_step_end


def callbacks(args: ESConfig, given: Sequence[Given] | Given | None) -> list[TrainerCallback]:
    """The user's callbacks behind those of `report_to` (transformers' own). Raises ConfigError for one that cannot be
    used.
    """
    made: list[TrainerCallback] = [OwnFlow()]
    for name in args.reporters:
        try:
            made += [kind() for kind in integration_utils.get_reporting_integration_callbacks(name)]
        except Exception as e:  # of whatever package it stands for
            raise ConfigError(f"report_to: {name} cannot be used: {e}") from e
    several = [given] if isinstance(given, TrainerCallback | type) else list(given or [])
    return [*(checked(callback, args) for callback in made), *(checked(callback, args) for callback in several)]


def checked(callback: Given, args: ESConfig) -> TrainerCallback:
    """The callback, made if it is a class. Raises ConfigError, with the reason, for one that cannot be made, or cannot
    do its work here.
    """
    kind = callback if isinstance(callback, type) else type(callback)
    if not issubclass(kind, TrainerCallback):
        raise ConfigError(f"callbacks are transformers' TrainerCallbacks, or their classes; got {callback!r}.")
    if isinstance(callback, type):
        try:
            callback = callback()
        except Exception as e:
            raise ConfigError(f"callback {kind.__name__} cannot be used: {e}") from e
    for refused, applies, why in _REFUSED:
        if isinstance(callback, refused) and applies(callback, args):
            raise ConfigError(f"callback {kind.__name__} cannot be used: {why}.")
    return callback


_SAVES_BY_TRAINER = "to save the model it makes a transformers Trainer, which needs settings of gradient training"
_REFUSED: list[tuple[type[TrainerCallback], Callable[[Any, ESConfig], bool], str]] = [
    (
        JITCheckpointCallback,
        lambda *_: True,
        "it calls transformers' Trainer to save at SIGTERM. Seedtune saves at SIGTERM and at Ctrl-C by itself",
    ),
    (
        integration_utils.WandbCallback,
        lambda callback, _: bool(callback._log_model.is_enabled),
        f"{_SAVES_BY_TRAINER}. Set WANDB_LOG_MODEL=false; checkpoints are in output_dir",
    ),
    (
        integration_utils.DVCLiveCallback,
        lambda callback, _: callback._log_model is True,
        f'{_SAVES_BY_TRAINER}. Set log_model="all" (HF_DVCLIVE_LOG_MODEL=all)',
    ),
    (
        EarlyStoppingCallback,
        lambda _, args: args.eval_steps == 0,
        "with eval_steps: 0 the center is evaluated first and last only, and nothing can be stopped early. Set "
        "eval_steps",
    ),
]


def init_end(handler: CallbackHandler, args: ESConfig, state: TrainerState, control: TrainerControl) -> None:
    """Tell the callbacks that the trainer is made. Raises ConfigError for what they object to."""
    for callback in handler.callbacks:
        try:
            callback.on_init_end(
                args, state, control, model=handler.model, processing_class=handler.processing_class
            )  # fmt: skip
        except Exception as e:
            raise ConfigError(f"callback {type(callback).__name__} cannot be used: {e}") from e


def is_of_reporter(error: BaseException) -> bool:
    """Whether it was raised in one of transformers' own callbacks for trackers."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == integration_utils.__file__ for frame, _ in frames)


class _TransformersNames:
    """Answers for what transformers' `TrainingArguments` have and a run has not, by their defaults."""

    def __getattr__(self, name: str) -> Any:
        defaults = _defaults()
        if name.startswith("_") or name not in defaults:
            raise AttributeError(f"neither Seedtune's settings nor transformers' TrainingArguments have {name!r}")
        return defaults[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self).__bases__[1], dict(vars(self)))


@cache
def _defaults() -> dict[str, Any]:
    found = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
    unset = {name: None for name, default in found.items() if default is dataclasses.MISSING}
    alone = {"world_size": 1, "n_gpu": 0, "local_process_index": 0, "should_log": True, "should_save": True}
    return {**found, **unset, **alone}


@cache
def _kind(settings: type[Any]) -> type[Any]:
    return type(settings.__name__, (_TransformersNames, settings), {})


def _made(settings: Any, values: Mapping[str, Any]) -> ESConfig:
    arguments: ESConfig = object.__new__(_kind(settings))
    vars(arguments).update(values)
    return arguments


def arguments(args: ESConfig, state: TrainerState, metric: str, greater_is_better: bool, device: Any) -> ESConfig:
    """The settings as callbacks read them: with all that `TrainingArguments` have, and what follows from the settings
    in its words. `metric`: that of the best center, `eval/...`.
    """
    values = {
        "eval_strategy": IntervalStrategy.STEPS,
        "save_strategy": SaveStrategy(args.save_strategy),
        "logging_strategy": IntervalStrategy.STEPS,
        "logging_first_step": True,
        "logging_steps": state.logging_steps,
        "eval_steps": state.eval_steps,
        "save_steps": state.save_steps,
        "num_train_epochs": state.num_train_epochs,
        "train_batch_size": state.train_batch_size,
        "per_device_train_batch_size": state.train_batch_size,
        "metric_for_best_model": metric.removeprefix("eval/"),
        "greater_is_better": greater_is_better,
        "report_to": args.reporters,
        "device": str(device),
    }
    return _made(type(args), {**vars(args), **values})


def state_of_run(args: ESConfig, prompts: int, dataset: int, stateful: Sequence[Any]) -> TrainerState:
    """transformers' state of a run whose iterations have `prompts` of the `dataset`'s; `stateful`: callbacks and the
    control. Where nothing is due in between, it is due at the last step.
    """
    saved: list[Any] = [one for one in stateful if isinstance(one, ExportableState)]
    return TrainerState(
        max_steps=args.max_steps,
        logging_steps=1,
        eval_steps=args.eval_steps or args.max_steps,
        save_steps=args.save_steps or args.max_steps,
        train_batch_size=args.population_size * (args.prompts_per_member or prompts) * args.num_generations,
        num_train_epochs=math.ceil(args.max_steps * prompts / dataset),
        stateful_callbacks=saved,
    )


def reported(metrics: Mapping[str, Any], epoch: float) -> dict[str, Any]:
    """Metrics of an iteration or of an evaluation under transformers' names, for logs and `log_history`: `eval_reward`
    and so on, the epoch, and as the loss, which Evolution Strategies do not have, the reward with its sign changed.
    """
    found = {name.replace("eval/", "eval_", 1): value for name, value in metrics.items() if name != "control"}
    losses = {name: -found[of] for name, of in (("loss", "reward"), ("eval_loss", "eval_reward")) if of in found}
    return {**found, **losses, "epoch": epoch}
