"""Rebuild a fine-tuned model from its base model and the journal of the run: no generation, the same bits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .options import refuse_unknown

HELP = "rebuild a model from its journal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("journal", metavar="JOURNAL", help="journal.jsonl, or the folder of a run")
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="BASE", help="the base model; default: as the run named it")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write the model into; new or empty")
    parser.add_argument("--until", metavar="T", type=int, help="stop after iteration T; default: the last")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    refuse_unknown(rest)
    return write([parsed.journal], parsed, scale=1.0)


def write(sources: Sequence[str], parsed: argparse.Namespace, scale: float) -> int:
    """Rebuild, with progress, and save. Raises JournalError, ModelError, RunFolderError, SaveError."""
    from pathlib import Path

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..errors import RunFolderError
    from ..journal.folder import save_whole
    from ..replay import load, rebuild

    target = Path(parsed.out).expanduser()
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise RunFolderError(f"{target} is not empty: give another --out. Nothing in it was changed.")
    patches = [load(source) for source in sources]
    columns = (TextColumn("iteration"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("")
        engine = rebuild(
            patches, parsed.model, until=parsed.until, scale=scale,
            on_iteration=lambda done, count: bar.update(task, completed=done, total=count),
        )  # fmt: skip
    save_whole(target, engine.save)
    digests = "each checked" if scale == 1 and len(patches) == 1 else "not comparable to those recorded"
    iterations = sum(map(len, patches)) if parsed.until is None else parsed.until
    print(f"{target}: {engine.name} after {iterations} iterations; digests {digests}; weights {engine.digest()}.")
    return 0
