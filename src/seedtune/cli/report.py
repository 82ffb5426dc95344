"""Write the page of a run or of a comparison: report/index.html in its folder, with a PNG of every figure.

The page loads nothing from elsewhere. The run may still be going on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, RunFolderError
from ..utils.paths import local_path
from .options import refuse_unknown

HELP = "write a page about a run or a comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=local_path, help="output_dir of a run, or of seedtune compare")
    parser.add_argument("--out", metavar="FOLDER", type=local_path, help="where to write; default: report/ in FOLDER")
    parser.add_argument("--watch", action="store_true", help="update it while the run goes on; the page reloads itself")
    parser.add_argument("--every", metavar="SECONDS", type=float, default=10, help="with --watch: how often (10)")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    refuse_unknown(parsed, rest)
    folder, out = parsed.folder, parsed.out
    if not 1 <= parsed.every <= 3600:
        raise ConfigError(f"--every must be between 1 and 3600 seconds; got {parsed.every}.")
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder: give the output_dir of a run, or of seedtune compare.")
    told = False
    while True:
        going = parsed.watch and _goes_on(folder)
        page = _write(folder, out, int(parsed.every) if going else 0)
        if not told or not going:
            print(f"Report: {page}" + ("  (Ctrl-C stops watching)" if going else ""), flush=True)
        told = True
        if not going:
            return 0
        try:
            time.sleep(parsed.every)
        except KeyboardInterrupt:
            print(f"\nReport: {_write(folder, out, 0)}")
            return 0


def _write(folder: Path, out: Path | None, refresh: int) -> Path:
    from ..compare import page
    from ..report import run_page

    write = page.write if _is_comparison(folder) else run_page.write
    return write(folder, out, refresh)


def _goes_on(folder: Path) -> bool:
    from ..compare.page import goes_on
    from ..report.history import held

    return goes_on(folder) if _is_comparison(folder) else held(folder)


def _is_comparison(folder: Path) -> bool:
    from ..compare.results import NAME

    return (folder / NAME).exists()
