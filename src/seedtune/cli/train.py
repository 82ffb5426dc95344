"""Fine-tune a model. Settings come from --config (one flat YAML file) and from flags; flags override."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import config_file
from ..config import check_keys
from ..errors import ConfigError
from ..journal.folder import RunFolder, write_text
from ..tasks import base, dataset
from ..tasks.builtin import builtin
from .options import RunConfig, add_flags, given, refuse_unknown

HELP = "fine-tune a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="settings as YAML; recipes/ has examples")
    parser.add_argument("--resume", action="store_true", help="go on with the run in output_dir")
    parser.add_argument("--dry-run", action="store_true", help="check and print the resolved settings, and stop")
    add_flags(parser)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    refuse_unknown(rest)
    flags = given(parsed)
    file = parsed.config or (_own_config(flags) if parsed.resume else None)
    args = resolve(config_file.read(file) if file else {}, flags)
    if parsed.dry_run:
        RunFolder(args.output_dir).check(resume=parsed.resume)
        text = config_file.to_yaml(args)
        write_text(RunFolder(args.output_dir).path / "config.resolved.yaml", text)
        print(text, end="")
        return 0
    from ..trainer import ESTrainer

    RunFolder(args.output_dir).check(resume=parsed.resume)
    parts = data_and_rewards(args)
    trainer = ESTrainer(model=args.model_name_or_path, args=args, **parts)
    return 130 if trainer.train(resume_from_checkpoint=parsed.resume).interrupted else 0


def _own_config(flags: Mapping[str, Any]) -> Path | None:
    """`--resume --output_dir DIR` alone is enough: the run's own settings are in its folder."""
    file = Path(flags.get("output_dir", RunConfig.output_dir)).expanduser() / "config.resolved.yaml"
    return file if file.is_file() else None


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
            "there is nothing to train on: set task (conciseness, countdown), or dataset_name and reward_funcs."
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
