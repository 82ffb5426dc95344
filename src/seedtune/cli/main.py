"""`seedtune`: parses arguments, runs a command, and turns expected errors into a message and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .. import __version__
from ..errors import SeedtuneError
from ..utils import console
from ..utils.paths import AnyPath
from ..utils.streams import tolerant_output


def main(arguments: Sequence[AnyPath] | None = None) -> int:
    """The console script. Exit codes: 0 done, 1 failed, 2 wrong settings, 130 interrupted."""
    with tolerant_output():
        return _main(arguments)


def _main(arguments: Sequence[AnyPath] | None) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser, commands = _parser()
    parsed, rest = parser.parse_known_args(None if arguments is None else [os.fspath(a) for a in arguments])
    if parsed.command is None:
        print(_WELCOME)
        return 0
    console.install(stderr=parsed.command == "generate")  # its output is what others read
    try:
        parsed.parser = parser  # for the completion of shells
        return int(commands[parsed.command].run(parsed, rest))
    except SeedtuneError as e:
        print("\n".join([f"seedtune: error: {e}", *getattr(e, "__notes__", [])]), file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("\nseedtune: interrupted; finished iterations are in the journal.", file=sys.stderr)
        return 130


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        prog="seedtune",
        description="Fine-tune large language models by Evolution Strategies: forward passes only, exact to reproduce.",
        usage="seedtune COMMAND ...",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"seedtune {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands: dict[str, Any] = {}
    shown: list[str] = []
    for group, names in _COMMANDS.items():
        shown.append(f"{group}:")
        for name in names:
            module = import_module(f"{__package__}.{_MODULES.get(name, name)}")
            sub = subparsers.add_parser(
                name,
                help=module.HELP,
                description=module.__doc__,
                formatter_class=_Formatter,
                allow_abbrev=False,
            )
            module.add_arguments(sub)
            commands[name] = module
            shown.append(f"  {name:12}{module.HELP}")
    parser.epilog = "\n".join([*shown, "", "seedtune COMMAND --help says more of one.", "", _EXAMPLES])
    return parser, commands


#: Commands, in the groups of --help.
_COMMANDS = {
    "begin": ["demo", "doctor"],
    "train": ["preflight", "train", "compare"],
    "look at what came out": ["report", "eval", "generate"],
    "repeat and pass on": ["replay", "export", "apply", "inspect", "diff"],
    "shell": ["completion"],
}
#: Commands whose module has another name.
_MODULES = {"eval": "evaluate"}

_WELCOME = """\
Seedtune fine-tunes large language models by Evolution Strategies: forward passes only, exact to reproduce.

Three commands to try:
  seedtune demo       fine-tune a small model on this machine, in minutes; nothing else is needed
  seedtune doctor     what this machine has, what is missing, and what will be slow
  seedtune train      your model, your data, your reward; alone it says how

seedtune --help lists all commands."""

_EXAMPLES = """examples:
  seedtune preflight --task conciseness
  seedtune train --config recipes/conciseness-smollm2.yaml --output_dir runs/first
  seedtune train --resume --output_dir runs/first --max_steps 20
  seedtune eval runs/first --task conciseness
  seedtune generate runs/first "What is the capital of Peru?"
  seedtune report runs/first
  seedtune export runs/first --patch first.seedtune
  seedtune apply first.seedtune --out first-again
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """100 columns, and one spelling of each flag: the one with underscores. Commands stand in the epilog, in groups."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=38, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or not action.option_strings[0].startswith("--"):
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {action.metavar or ''}".rstrip()

    def add_argument(self, action: argparse.Action) -> None:
        if not isinstance(action, argparse._SubParsersAction):
            super().add_argument(action)

    def _format_usage(self, *args: Any) -> str:
        text = super()._format_usage(*args)
        return text if text.count("\n") < 6 else text.split("[")[0].rstrip() + " [--config FILE] [--KEY VALUE ...]\n\n"


if __name__ == "__main__":
    sys.exit(main())
