"""`seedtune`: parses arguments, runs a command, and turns expected errors into a message and an exit code."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from .. import __version__
from ..errors import ConfigError, SeedtuneError
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
    words = sys.argv[1:] if arguments is None else [os.fspath(a) for a in arguments]
    if words and words[0] in ("help", "version"):
        words = ["--version"] if words[0] == "version" else [*words[1:2], "--help"]
    if words and not words[0].startswith("-") and words[0] not in commands:
        print(f"seedtune: error: {_no_command(words[0], commands)}", file=sys.stderr)
        return ConfigError.exit_code
    parsed, rest = parser.parse_known_args(words)
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


def _no_command(word: str, commands: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, commands, 1) or [name for name in commands if name.startswith(word)]
    meant = f" Did you mean `seedtune {near[0]}`?" if near else ""
    return f"there is no command {word!r}.{meant} `seedtune --help` lists them all."


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    parser = _Parser(
        prog="seedtune",
        description=_ABOUT,
        usage="seedtune COMMAND ...",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"seedtune {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", prog="seedtune")
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
            sub.set_defaults(flags=[string for action in sub._actions for string in action.option_strings])
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

_ABOUT = """\
Seedtune fine-tunes a language model on a reward: a function of yours that scores what the model writes.
It does so by Evolution Strategies, without gradients: on a laptop too, and exact to reproduce."""

_WELCOME = f"""\
{_ABOUT}

Three commands to try:
  seedtune demo       fine-tune a small model on this machine, in minutes; nothing else is needed
  seedtune doctor     what this machine has, what is missing, and what will be slow
  seedtune train      your model, your data, your reward; alone it says how

seedtune --help lists all commands."""

_EXAMPLES = """examples:
  seedtune preflight --task conciseness
  seedtune train --task conciseness --max_steps 10 --output_dir runs/first
  seedtune train --resume --output_dir runs/first --max_steps 20
  seedtune eval runs/first --task conciseness
  seedtune generate runs/first "What is the capital of Peru?"
  seedtune report runs/first
  seedtune export runs/first --patch first.seedtune
  seedtune apply first.seedtune --out first-again
"""


class _Parser(argparse.ArgumentParser):
    """Says with an error where help is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.format_usage()}{self.prog}: error: {message}. `{self.prog} --help` says more.\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """100 columns at most, and one spelling of each flag: the one with underscores. Commands stand in the epilog, in
    groups.
    """

    def __init__(self, prog: str) -> None:
        width = min(100, shutil.get_terminal_size((100, 24)).columns - 1)
        super().__init__(prog, max_help_position=min(38, width // 3), width=width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs at the width that there is; those with indented lines stay as they are."""
        parts = text.strip().split("\n\n")
        return "\n\n".join(p if "\n  " in f"\n{p}" else textwrap.fill(" ".join(p.split()), width) for p in parts)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or not action.option_strings[0].startswith("--"):
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {action.metavar or ''}".rstrip()

    def add_argument(self, action: argparse.Action) -> None:
        if not isinstance(action, argparse._SubParsersAction):
            super().add_argument(action)

    def _format_usage(self, *args: Any) -> str:
        """What is required, and of many flags no more than their form."""
        text = super()._format_usage(*args)
        if text.count("\n") < 6:
            return text
        actions: Iterable[argparse.Action] = args[1]
        places = [f"{a.metavar}" if a.nargs is None else f"[{a.metavar} ...]" for a in actions if not a.option_strings]
        config = ["--config FILE" if a.required else "[--config FILE]" for a in actions if a.dest == "config"]
        return " ".join([f"usage: {self._prog}", *places, *config, "[--KEY VALUE ...]"]) + "\n\n"


if __name__ == "__main__":
    sys.exit(main())
