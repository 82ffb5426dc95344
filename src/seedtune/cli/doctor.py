"""Say what this machine has, what is missing, and what will be slow and why. Reads only; nothing is sent anywhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .options import refuse_unknown

HELP = "say what this machine has, what is missing, what will be slow"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: it looks at everything."""


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    import rich
    from rich.text import Text

    from . import checkup

    refuse_unknown(parsed, rest)
    console = rich.get_console()
    for title, lines in checkup.facts().items():
        console.print(Text(title, style="bold"))
        width = max(len(name) for name, _ in lines)
        for name, value in lines:
            console.print(Text.assemble((f"  {name:{width}}  ", "dim"), value), soft_wrap=True)
    console.print(Text("What will be slow, or may fail", style="bold"))
    for warning in checkup.warnings() or ["nothing that could be found from here"]:
        console.print(Text(f"  {warning}"), soft_wrap=True)
    return 0
