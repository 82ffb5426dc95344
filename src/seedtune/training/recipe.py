"""What a configuration file says besides `ESConfig`: which model, which data, which rewards, all of them by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..config.auto import with_auto
from ..config.keys import check_keys
from ..config.run_config import RunConfig
from ..config.values import coerce
from ..data import dataset
from ..errors import ConfigError, DataError
from ..tasks import base
from ..tasks.registry import TASKS, builtin

log = logging.getLogger(__name__)


def resolve(from_file: Mapping[str, Any], from_flags: Mapping[str, Any]) -> RunConfig:
    """Defaults (`AUTO` where nothing is said of members and steps), then the task's own, then the file, then the flags.
    Raises ConfigError.
    """
    check_keys(RunConfig, from_file)
    values = {**from_file, **from_flags}
    if isinstance(name := values.get("task"), str):
        defaults = _task(name, values.get("task_args")).defaults
        unfit = {"reward_weights"} if "reward_funcs" in values else set()
        unfit |= {"curriculum"} if "dataset_name" in values else set()
        values = {**{key: value for key, value in defaults.items() if key not in unfit}, **values}
    return RunConfig(**with_auto(values))


def data_and_rewards(args: RunConfig, *, evaluates: bool = False) -> dict[str, Any]:
    """Datasets and reward functions for the trainer, the task's or the user's; or for an evaluation of a model (it
    `evaluates`), which differs in what errors say. Raises ConfigError, DataError.
    """
    if args.task_args and not args.task:
        raise ConfigError("task_args say which variant of a task, and there is none: set task, or leave them out.")
    task = _task(args.task, args.task_args) if args.task else None
    if task is None and args.dataset_name is None and args.environment_factory is None:
        why = " Only a run or a patch of a task or a named dataset says so itself." if evaluates else ""
        raise ConfigError(
            f"there is nothing to {'evaluate' if evaluates else 'train'} on: set task ({', '.join(TASKS)}), or "
            f"dataset_name and reward_funcs.{why}"
        )
    rewards: Any = args.reward_funcs or (list(task.rewards) if task else None)
    if not rewards and args.environment_factory is None:
        why = " A patch does not say which code is run: name its functions here." if evaluates else ""
        raise ConfigError(
            "reward_funcs is missing, so nothing says what a good completion is: give a built-in name, "
            f"package.module.function or file.py:function.{why}"
        )
    gold_metrics: Any = args.eval_funcs or (list(task.gold_metrics) if task else None)
    test: base.Rows | None
    if args.dataset_name is None and task is None:
        train, test = dataset.episodes(args.prompts_per_step), None
    elif args.dataset_name is None:
        if args.dataset_prompt_column:
            raise ConfigError("dataset_prompt_column is for dataset_name; a task has its own prompts.")
        assert task is not None
        train, test = task.train, task.test
    else:
        train = dataset.load(args.dataset_name, args.dataset_train_split, args.dataset_config)
        train = dataset.with_prompt(train, args.dataset_prompt_column, "dataset_name")
        test = _test_split(args)
        if task is not None and task.adapt is not None:
            test = None if test is None else task.adapt(test)
            train = _not_in(test or [], task.adapt(train))
    return {
        "train_dataset": first(train, args.max_train_samples),
        "eval_dataset": first(test, args.max_eval_samples) if test is not None else None,
        "reward_funcs": rewards,
        "eval_funcs": gold_metrics,
        "tools": args.tools,
        "environment_factory": args.environment_factory,
    }


def _test_split(args: RunConfig) -> base.Rows | None:
    if (split := args.dataset_test_split) is None:
        return None
    if dataset.names_a_file(split):
        rows = dataset.load(split)
    else:
        rows = dataset.load(str(args.dataset_name), split, args.dataset_config)
    return dataset.with_prompt(rows, args.dataset_prompt_column, "dataset_test_split")


def _not_in(test: base.Rows, train: base.Rows) -> base.Rows:
    """The training rows without those whose prompt is one to test on. Raises DataError where none is left."""
    held_out = {str(row["prompt"]) for row in test}
    left = [row for row in train if str(row["prompt"]) not in held_out]
    if not left:
        raise DataError("all rows of the training split are rows to test on: set dataset_test_split to other rows.")
    if len(left) < len(train):
        log.warning(f"{len(train) - len(left)} of {len(train)} training rows left out: they are rows to test on.")
    return left


def first(rows: base.Rows, count: int | None) -> base.Rows:
    return rows if count is None else [rows[n] for n in range(min(count, len(rows)))]


def _task(name: str, task_args: Any = None) -> base.Task:
    try:
        task = builtin(name)
    except KeyError as e:
        raise ConfigError(f"task: {e.args[0]}.") from None
    return task.with_args(coerce("task_args", "dict[str, Any]", task_args or {}))
