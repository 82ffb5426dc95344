"""Train the same model on the same task by several methods, with equally many completions each, and evaluate them.

Methods: es, TRL's grpo, dr_grpo and rloo (pip install ".[trl]"), or your own function (docs/guides/compare.md). Every
training is a cell with a process of its own; to continue a comparison that was interrupted, start it again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import yaml_file
from ..errors import ConfigError
from .options import add_flags, given, refuse_unknown

HELP = "compare ES with GRPO and others at equally many completions"
_FLAGS = (
    "output_dir model_name_or_path task dataset_name max_train_samples max_eval_samples max_completion_length "
    "device threads"
).split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", required=True, help="recipes/compare-conciseness.yaml is one")
    budget = ("--completions", "--generations")  # the second is its name in 0.1.0
    parser.add_argument(*budget, metavar="N", type=int, help="completions that each training may generate")
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", help="one training of every method per seed")
    parser.add_argument("--dry-run", action="store_true", help="check the settings, list the cells, and stop")
    add_flags(parser, only=_FLAGS)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    import rich

    from ..compare.comparison import OWN_KEYS, comparison
    from ..compare.results import read
    from ..compare.table import comparison_table

    file = yaml_file.read(parsed.config)
    refuse_unknown(parsed, rest, [key for key in file if key not in OWN_KEYS])
    own = {key: value for key in ("completions", "seeds") if (value := getattr(parsed, key)) is not None}
    values: dict[str, Any] = {**file, **given(parsed), **own}
    plan = comparison(values)
    console = rich.get_console()
    if parsed.dry_run:
        for cell in plan.cells:
            print(f"{cell.folder}: {cell.function} {dict(cell.settings) or ''}")
        return 0
    folder = Path(plan.shared.output_dir)
    failed = _run(plan, folder, console)
    console.print()
    console.print(comparison_table(read(folder)))
    print(f"\nOutput: {folder}\nNext:\n  seedtune report {folder}")
    return 1 if failed else 0


def _run(plan: Any, folder: Path, console: Any) -> int:
    """Run the cells, with a line for each; how many failed."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    from ..compare.runner import run
    from ..report.format import duration, number

    failed = 0
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("completions"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("starting", total=plan.num_completions)

        def on_progress(cell: Any, num_completions: int) -> None:
            if (text := cell.folder if cell.function else "the base model") != bar.tasks[0].description:
                bar.reset(shown, description=text)
            bar.update(shown, completed=num_completions)

        for outcome in run(plan, folder, on_progress):
            name = outcome.cell.folder if outcome.cell.function else "the base model"
            if outcome.result is None:
                failed += 1
                console.print(Text.assemble((f"{name} failed", "red"), f": {outcome.error}"))
                continue
            last = outcome.result["points"][-1]
            seconds = f" in {duration(last['seconds'])}" if outcome.cell.function else ""
            console.print(Text(f"{name}: reward {number(last['metrics']['reward']['mean'])}{seconds}"))
    if failed == len(plan.cells) + 1:
        raise ConfigError("every cell failed; the logs are in their folders.")
    return failed
