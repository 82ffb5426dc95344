"""Compare two runs (folders, journals or patches): base and settings, and where their weights first differ."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .options import refuse_unknown

HELP = "show where two runs differ"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a run's folder, a journal or a patch")
    parser.add_argument("b", metavar="B", help="another")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Exit code 0 when they are equal in all iterations that both have, else 1 (as `diff`)."""
    from ..training.replay import config_diff, first_divergence, load

    refuse_unknown(parsed, rest)
    a, b = load(parsed.a, "last"), load(parsed.b, "last")
    differ = config_diff(a, b)
    for key, left, right in differ:
        print(f"{key}: {left} | {right}")
    t, common = first_divergence(a, b), min(len(a), len(b))
    if t is None:
        print(f"The weights are equal after each of {common} iterations.")
    else:
        print(f"The weights first differ after iteration {a.steps[t - 1]}: {a.digest(t)} | {b.digest(t)}.")
    if len(a) != len(b):
        print(f"They have {len(a)} and {len(b)} iterations.")
    return int(t is not None or bool(differ))
