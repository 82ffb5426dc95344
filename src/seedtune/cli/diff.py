"""Compare two runs (folders, journals or patches): the same base and settings? where do their weights part?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .options import refuse_unknown

HELP = "say where two runs part"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a run's folder, a journal or a patch")
    parser.add_argument("b", metavar="B", help="another")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Exit code 0 when they are the same as far as both go, else 1 (as `diff`)."""
    from ..replay import load, part, same

    refuse_unknown(rest)
    a, b = load(parsed.a), load(parsed.b)
    differ = same(a, b)
    for key, left, right in differ:
        print(f"{key}: {left} | {right}")
    t, common = part(a, b), min(len(a), len(b))
    if t is None:
        print(f"The weights are the same after each of {common} iterations.")
    else:
        print(f"The weights part in iteration {t}: {a.digest(t)} | {b.digest(t)}.")
    if len(a) != len(b):
        print(f"They have {len(a)} and {len(b)} iterations.")
    return int(t is not None or bool(differ))
