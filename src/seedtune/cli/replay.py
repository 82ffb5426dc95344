"""Rebuild a fine-tuned model from its base model and the journal of the run: the same bits, no completions needed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..utils.paths import local_path
from .options import refuse_unknown

HELP = "rebuild a model from its journal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("journal", metavar="JOURNAL", help="journal.jsonl, or the folder of a run")
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="BASE", help="the base model; default: the one that the run names")
    parser.add_argument(
        "--out", metavar="DIR", type=local_path, required=True, help="folder to write the model into; new or empty"
    )
    add_until(parser)


def add_until(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--until", metavar="T|best|last", type=_until, help="the center after iteration T; default: the best, if known"
    )


def _until(text: str) -> str | int:
    return text if text in ("best", "last") else int(text)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    refuse_unknown(parsed, rest)
    return write([parsed.journal], parsed, scale=1.0)


def write(sources: Sequence[str], parsed: argparse.Namespace, scale: float) -> int:
    """Rebuild with a progress bar, and save. Raises JournalError, ModelError, RunFolderError, SaveError."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..errors import RunFolderError
    from ..training.replay import load, rebuild
    from ..utils.files import save_whole

    target = parsed.out
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise RunFolderError(f"{target} is not empty: give another --out. Nothing in it was changed.")
    patches = [load(source, parsed.until) for source in sources]
    columns = (TextColumn("iteration"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("")
        engine = rebuild(
            patches, parsed.model, scale=scale,
            on_iteration=lambda done, count: bar.update(task, completed=done, total=count),
        )  # fmt: skip
    save_whole(target, engine.save)
    digests = "each checked" if scale == 1 and len(patches) == 1 else "not comparable to those recorded"
    updates = sum(map(len, patches))
    print(f"{target}: {engine.name} after {updates} iterations; digests {digests}; weights {engine.digest()}.")
    return 0
