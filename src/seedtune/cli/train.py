"""Fine-tune a model. Settings come from --config (one flat YAML file) and from flags; flags override.

Say nothing about members and steps (population_size, sigma, learning_rate, perturbation, ...), and the run chooses them
by measuring. As soon as one of them is set, the defaults of all are the paper's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import yaml_file
from ..config.run_config import RunConfig
from ..errors import ConfigError
from ..journal.folder import RunFolder
from ..training.recipe import data_and_rewards, resolve
from ..utils.files import write_text
from ..utils.paths import local_path
from ..utils.processes import check_alone
from .options import CONFIG, add_flags, given, refuse_unknown

HELP = "fine-tune a model"
_NOTHING = """there is nothing to train: say which model, data and reward. To see a run first, without anything:
  seedtune demo
A task that comes with Seedtune, on a model of yours:
  seedtune train --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --task conciseness
Your own data and reward function:
  seedtune train --dataset_name prompts.jsonl --reward_funcs reward.py:my_reward
seedtune train --help lists all settings, the first ten on top."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help=CONFIG)
    parser.add_argument("--resume", action="store_true", help="continue the run in output_dir")
    parser.add_argument("--dry-run", action="store_true", help="check and print the settings, and stop")
    add_flags(parser)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    flags = given(parsed)
    if not (flags or rest or parsed.config or parsed.resume):
        raise ConfigError(_NOTHING)
    file = parsed.config or (_own_config(flags) if parsed.resume else None)
    values = yaml_file.read(file) if file else {}
    refuse_unknown(parsed, rest, values)
    args = resolve(values, flags)
    check_alone(args.fleet)
    if parsed.dry_run:
        folder = RunFolder(args.output_dir)
        folder.check(resume=parsed.resume)
        text = yaml_file.to_yaml(args)
        if not folder.has_journal:  # an existing run keeps its own settings
            write_text(folder.path / "config.resolved.yaml", text)
        print(text, end="")
        return 0
    return train(args, parsed.resume)


def train(args: RunConfig, resume: bool = False) -> int:
    """Run it; the exit code."""
    from ..training.trainer import ESTrainer

    RunFolder(args.output_dir).check(resume=resume)
    parts = data_and_rewards(args)
    trainer = ESTrainer(model=args.model_name_or_path, args=args, **parts)
    return 130 if trainer.train(resume_from_checkpoint=resume).interrupted else 0


def _own_config(flags: Mapping[str, Any]) -> Path | None:
    """For `--resume --output_dir DIR` alone: the settings in the folder of the run."""
    file = local_path(flags.get("output_dir", RunConfig.output_dir)) / "config.resolved.yaml"
    return file if file.is_file() else None
