"""Apply one or more patches to their base model: the same bytes as the run that a patch was exported from.

Several patches of one base are applied in turn. `--scale` multiplies every update.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from ..errors import ConfigError
from .options import refuse_unknown
from .replay import add_common, write

HELP = "apply a patch to its base model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("patches", metavar="PATCH", nargs="+", help="files that `seedtune export` wrote")
    parser.add_argument("--scale", metavar="S", type=float, default=1.0, help="strength; 1: as trained, 0.5: half")
    add_common(parser)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    refuse_unknown(parsed, rest)
    if not math.isfinite(parsed.scale):
        raise ConfigError(f"--scale must be a finite number, got {parsed.scale}.")
    if parsed.until is not None and len(parsed.patches) > 1:
        raise ConfigError("--until is for one patch: give only one, or leave --until out.")
    return write(parsed.patches, parsed, parsed.scale)
