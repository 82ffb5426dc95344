"""Fine-tune a model. Settings come from --config (one flat YAML file) and from flags; flags override."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import config_file
from ..journal.folder import RunFolder, write_text
from ..recipe import RunConfig, data_and_rewards, resolve
from .options import add_flags, given, refuse_unknown

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
        folder = RunFolder(args.output_dir)
        folder.check(resume=parsed.resume)
        text = config_file.to_yaml(args)
        if not folder.has_journal:  # a run that is there keeps the settings that it was started with
            write_text(folder.path / "config.resolved.yaml", text)
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
