"""Train the same model on the same task by several methods, with equal generations, and measure what each came to.

Methods: es, TRL's grpo, dr_grpo and rloo (pip install ".[trl]"), or your own function (docs/compare.md). Every
training is a cell with a process of its own; a comparison that was interrupted goes on when it is started again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import config_file
from ..errors import ConfigError
from .options import add_flags, given, refuse_unknown

HELP = "compare ES with GRPO and others at equal generations"
_FLAGS = (
    "output_dir model_name_or_path task dataset_name max_train_samples max_eval_samples max_completion_length "
    "device threads"
).split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", required=True, help="recipes/compare-conciseness.yaml is one")
    parser.add_argument("--generations", metavar="N", type=int, help="completions that each training may generate")
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", help="a training of every method for each")
    parser.add_argument("--dry-run", action="store_true", help="check, list the cells, and stop")
    add_flags(parser, only=_FLAGS)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    from rich.console import Console

    from ..compare.plan import comparison
    from ..report.compared import compared
    from ..report.comparison_page import NAME

    refuse_unknown(rest)
    own = {key: value for key in ("generations", "seeds") if (value := getattr(parsed, key)) is not None}
    values: dict[str, Any] = {**config_file.read(parsed.config), **given(parsed), **own}
    plan = comparison(values)
    console = Console(highlight=False)
    if parsed.dry_run:
        for cell in plan.cells:
            console.print(f"{cell.folder}: {cell.function} {dict(cell.settings) or ''}")
        return 0
    folder = Path(plan.shared.output_dir).expanduser()
    failed = _run(plan, folder, console)
    console.print()
    console.print(compared(json.loads((folder / NAME).read_text())))
    console.print(f"\nOutput: {folder}\nNext:\n  seedtune report {folder}", soft_wrap=True)
    return 1 if failed else 0


def _run(plan: Any, folder: Path, console: Any) -> int:
    """Run the cells, with a line for each; how many failed."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..compare.runner import run
    from ..report.words import duration, number

    failed = 0
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("generations"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("starting", total=plan.generations)

        def on_progress(cell: Any, generations: int) -> None:
            if (text := cell.folder if cell.function else "the base model") != bar.tasks[0].description:
                bar.reset(shown, description=text)
            bar.update(shown, completed=generations)

        for outcome in run(plan, folder, on_progress):
            name = outcome.cell.folder if outcome.cell.function else "the base model"
            if outcome.result is None:
                failed += 1
                console.print(f"[red]{name} failed[/red]: ", end="")
                console.print(outcome.error, markup=False)
                continue
            last = outcome.result["points"][-1]
            console.print(f"{name}: reward {number(last['metrics']['reward']['mean'])}"
                          + (f" in {duration(last['seconds'])}" if outcome.cell.function else ""))  # fmt: skip
    if failed == len(plan.cells) + 1:
        raise ConfigError("every cell failed; the logs are in their folders.")
    return failed
