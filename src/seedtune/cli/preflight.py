"""Will a run learn? Measures on a few hundred completions how reliable rewards are; says what a step can gain and what
it costs, and recommends settings. Reads only; settings are those of `seedtune train`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..config import yaml_file
from ..training.recipe import data_and_rewards, resolve
from .options import CONFIG, add_flags, given, refuse_unknown

HELP = "say before a run whether it will learn"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help=CONFIG)
    add_flags(parser)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Exit code 0 unless the verdict is that it will not learn: then 1."""
    values = yaml_file.read(parsed.config) if parsed.config else {}
    refuse_unknown(parsed, rest, values)
    args = resolve(values, given(parsed))
    from ..report.progress import Progress
    from ..training.trainer import ESTrainer

    trainer = ESTrainer(model=args.model_name_or_path, args=args, progress=Progress(), **data_and_rewards(args))
    found = trainer.preflight()
    print("\n".join(found.lines()))
    return int(found.verdict == "will not learn")
