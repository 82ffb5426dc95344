"""What a configuration file says besides `ESConfig`: which model, which data, which rewards, all of them by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config import ESConfig, check_keys, checks_keys, setting
from .errors import ConfigError
from .tasks import base, dataset
from .tasks.builtin import builtin

DATA = "Model and data"


@checks_keys
@dataclass(frozen=True)
class RunConfig(ESConfig):
    """What the command line needs besides `ESConfig`: which model, which data, which rewards. TRL's names."""

    model_name_or_path: str = setting(
        DATA, "Hub id, folder, GGUF file, or smollm2-135m-instruct", "smollm2-135m-instruct", learning=False
    )
    task: str | None = setting(DATA, "a built-in task: conciseness, countdown, keywords, one_liner or summary", None)
    dataset_name: str | None = setting(DATA, "JSONL, CSV, Parquet, folder, or Hub id; with a 'prompt' column", None)
    dataset_config: str | None = setting(DATA, "configuration of a Hub dataset", None)
    dataset_train_split: str = setting(DATA, "split to train on", "train")
    dataset_test_split: str | None = setting(DATA, "split (or file) to evaluate on", None, learning=False)
    max_train_samples: int | None = setting(DATA, "train on the first N rows only", None)
    max_eval_samples: int | None = setting(DATA, "evaluate on the first N rows only", None, learning=False)
    reward_funcs: list[str] | None = setting(DATA, "built-in name, package.module.function, file.py:function", None)
    eval_funcs: list[str] | None = setting(DATA, "measured on the centre, never optimised", None, learning=False)


def resolve(from_file: Mapping[str, Any], from_flags: Mapping[str, Any]) -> RunConfig:
    """Defaults, then the task's own, then the file, then the flags. Raises ConfigError."""
    check_keys(RunConfig, from_file)
    values = {**from_file, **from_flags}
    if isinstance(name := values.get("task"), str):
        values = {**_task(name).defaults, **values}
    for key in ("reward_funcs", "eval_funcs", "stop_at"):
        if isinstance(values.get(key), str):
            values[key] = [values[key]]
    return RunConfig(**values)


def data_and_rewards(args: RunConfig) -> dict[str, Any]:
    """Datasets and reward functions for the trainer, the task's or the user's. Raises ConfigError, DataError."""
    task = _task(args.task) if args.task else None
    if task is None and args.dataset_name is None:
        raise ConfigError(
            "there is nothing to train on: set task (conciseness, countdown, keywords, one_liner, summary), or "
            "dataset_name and reward_funcs."
        )
    rewards: Any = args.reward_funcs or (list(task.rewards) if task else None)
    if not rewards:
        raise ConfigError("reward_funcs is missing: give a built-in name, package.module.function or file.py:function.")
    truths: Any = args.eval_funcs or (list(task.truths) if task else None)
    test: base.Rows | None
    if args.dataset_name is None:
        assert task is not None
        train, test = task.train, task.test
    else:
        train = dataset.load(args.dataset_name, args.dataset_train_split, args.dataset_config)
        test = _test_split(args)
    return {
        "train_dataset": first(train, args.max_train_samples),
        "eval_dataset": first(test, args.max_eval_samples) if test is not None else None,
        "reward_funcs": rewards,
        "eval_funcs": truths,
    }


def _test_split(args: RunConfig) -> base.Rows | None:
    if (split := args.dataset_test_split) is None:
        return None
    is_file = split.endswith((".jsonl", ".json", ".csv", ".parquet"))
    if is_file:
        return dataset.load(split)
    return dataset.load(str(args.dataset_name), split, args.dataset_config)


def first(rows: base.Rows, count: int | None) -> base.Rows:
    return rows if count is None else [rows[n] for n in range(min(count, len(rows)))]


def _task(name: str) -> base.Task:
    try:
        return builtin(name)
    except KeyError as e:
        raise ConfigError(f"task: {e.args[0]}.") from None
