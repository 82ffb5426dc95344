"""Print a script that completes commands, flags and files in a shell.

bash: seedtune completion bash > ~/.local/share/bash-completion/completions/seedtune
zsh:  seedtune completion zsh > a folder of $fpath, as _seedtune
fish: seedtune completion fish > ~/.config/fish/completions/seedtune.fish
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from ..config.run_config import RunConfig
from .options import refuse_unknown

HELP = "print the completion script of a shell"
SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    import shtab

    refuse_unknown(parsed, rest)
    for command in parsed.parser._subparsers._group_actions[0].choices.values():
        for action in command._actions:
            _complete(action, shtab.FILE)
    print(shtab.complete(parsed.parser, shell=parsed.shell))
    return 0


def _complete(action: argparse.Action, files: object) -> None:
    """The choices of a setting; elsewhere files, where a value may be one: runs, patches, recipes, models."""
    setting = next((f for f in dataclasses.fields(RunConfig) if f.name == action.dest), None)
    if setting and setting.metadata["choices"]:
        action.choices = setting.metadata["choices"]
    elif action.metavar in _FILES:
        action.complete = files  # type: ignore[attr-defined]  # which shtab reads


_FILES = ("FILE", "DIR", "FOLDER", "RUN", "MODEL", "BASE", "PATCH", "JOURNAL", "A", "B", "TEXT")
