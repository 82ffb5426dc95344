"""Measure a model on a task or a dataset: its answers (greedy unless told otherwise), rewards, and what is meant."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import ModelError
from ..journal.folder import RunFolder, write_text
from .options import add_flags, given, refuse_unknown

HELP = "measure a model on a task or a dataset"
_FLAGS = (
    "task dataset_name dataset_config dataset_train_split max_eval_samples reward_funcs eval_funcs reward_weights "
    "max_completion_length "
    "temperature top_p top_k generation_batch_size chat_template_kwargs reward_workers reward_timeout model_revision "
    "trust_remote_code dtype device threads seed"
).split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hub id, folder, checkpoint, run folder, or GGUF file")
    parser.add_argument("--json", metavar="FILE", help="also write metrics and completions to FILE")
    add_flags(parser, only=_FLAGS)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    from rich.console import Console

    from ..report.progress import Progress, measured
    from ..trainer import ESTrainer
    from .train import data_and_rewards, first, resolve

    refuse_unknown(rest)
    # `subtract` keeps no master copy, and nothing is perturbed here.
    args = resolve({}, {**given(parsed), "restore": "subtract"})
    parts = data_and_rewards(args)
    rows = parts.pop("eval_dataset") or first(parts["train_dataset"], args.max_eval_samples)
    parts["train_dataset"] = parts["eval_dataset"] = rows
    trainer = ESTrainer(model=model_of(parsed.model), args=args, progress=Progress(), **parts)
    answers, metrics = trainer.measure()
    table = answers.rows(trainer.weights)
    Console(highlight=False).print(measured(table, metrics))
    if parsed.json:
        everything = {"metrics": metrics, "completions": table}
        write_text(Path(parsed.json), json.dumps(everything, indent=2, default=str) + "\n")
    return 0


def model_of(name: str) -> str:
    """A model's name; for the folder of a run, its newest checkpoint."""
    folder = RunFolder(name)
    if not folder.holds_a_run:
        return name
    if not folder.checkpoints():
        raise ModelError(f"the run in {name} has no checkpoint yet: `seedtune train --resume` goes on with it.")
    return str(folder.checkpoints()[-1])
