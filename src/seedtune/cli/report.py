"""Write the page of a run or of a comparison: report/index.html in its folder, with a PNG of every figure.

The page holds all that it shows and loads nothing. A run may still be going on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, RunFolderError
from .options import refuse_unknown

HELP = "write a page about a run or a comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="output_dir of a run, or of seedtune compare")
    parser.add_argument("--out", metavar="FOLDER", help="where to; default: report/ in the folder")
    parser.add_argument("--watch", action="store_true", help="write it anew while the run goes on; the page reloads")
    parser.add_argument("--every", metavar="SECONDS", type=float, default=10, help="with --watch: how often (10)")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    refuse_unknown(rest)
    folder, out = Path(parsed.folder).expanduser(), Path(parsed.out).expanduser() if parsed.out else None
    if not 1 <= parsed.every <= 3600:
        raise ConfigError(f"--every must be between 1 and 3600 seconds; got {parsed.every}.")
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder: give the output_dir of a run, or of seedtune compare.")
    told = False
    while True:
        going = parsed.watch and _goes_on(folder)
        page = _write(folder, out, int(parsed.every) if going else 0)
        if not told or not going:
            print(f"Report: {page}" + ("  (Ctrl-C ends watching)" if going else ""), flush=True)
        told = True
        if not going:
            return 0
        try:
            time.sleep(parsed.every)
        except KeyboardInterrupt:
            print(f"\nReport: {_write(folder, out, 0)}")
            return 0


def _write(folder: Path, out: Path | None, refresh: int) -> Path:
    from ..report import comparison_page, run_page

    if (folder / comparison_page.NAME).exists():
        return comparison_page.write(folder, out, refresh)
    return run_page.write(folder, out, refresh)


def _goes_on(folder: Path) -> bool:
    from ..report.comparison_page import NAME, goes_on
    from ..report.history import held

    return goes_on(folder) if (folder / NAME).exists() else held(folder)
