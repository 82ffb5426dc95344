"""Settings as flags: every key of a configuration file is also a flag of the same name; hyphens are accepted."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from ..config.es_config import ESConfig
from ..config.keys import check_keys, is_known
from ..config.run_config import DATA, RunConfig
from ..errors import ConfigError
from ..tasks.registry import TASKS

#: The settings to begin with, which --help shows first, where a command takes them all.
FIRST = (
    "model_name_or_path task dataset_name reward_funcs output_dir max_steps max_completion_length "
    "population_size sigma learning_rate"
).split()
#: What commands say of arguments that several of them have.
MODEL, CONFIG = "Hub id, folder, checkpoint, run folder, patch, or GGUF file", "settings as YAML; recipes/ has examples"
_FIRST_GROUP = "The ten to begin with"


def add_flags(parser: argparse.ArgumentParser, cls: type[ESConfig] = RunConfig, only: Sequence[str] = ()) -> None:
    """A flag for every setting of `cls`, those of `FIRST` first (or for those in `only`), in its groups."""
    groups: dict[str, Any] = {}
    fields = [f for f in dataclasses.fields(cls) if not only or f.name in only]
    first = {} if only else {name: place - len(FIRST) for place, name in enumerate(FIRST)}
    for f in sorted(fields, key=lambda f: first.get(f.name, f.metadata["group"] != DATA)):
        group = _FIRST_GROUP if f.name in first else f.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        names = dict.fromkeys([f"--{f.name}", f"--{f.name.replace('_', '-')}"])
        shown = "" if f.default in (None, "") or "default" in f.metadata["help"] else f" (default: {f.default})"
        kind = str(f.type).replace(" | None", "")
        text = f.metadata["help"] + (f": {', '.join(TASKS)}" if f.name == "task" else "") + shown
        options: dict[str, Any] = {"dest": f.name, "default": argparse.SUPPRESS, "help": text}
        options["metavar"] = _METAVARS.get(kind, "TEXT")
        if kind == "bool":
            options.update(nargs="?", const="true")
        elif kind.startswith("list") or "list" in kind:
            options.update(nargs="+")
        groups[group].add_argument(*names, **options)


_METAVARS = {"int": "N", "float": "X", "bool": "true|false", "dict[str, Any]": "YAML", "list[float]": "X"}


def given(parsed: argparse.Namespace, cls: type[ESConfig] = RunConfig) -> dict[str, Any]:
    """The values of settings that were given as flags."""
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if hasattr(parsed, f.name):
            kind = str(f.type)
            raw = getattr(parsed, f.name)
            if isinstance(raw, str) and "None" in kind and raw.lower() in ("none", "null"):
                raw = None
            elif isinstance(raw, str) and ("bool" in kind or "dict" in kind):
                try:
                    raw = yaml.safe_load(raw)
                except yaml.YAMLError:
                    raise ConfigError(f"--{f.name}: {raw!r} is not YAML; for example '{{a: 1}}' or true.") from None
            values[f.name] = raw
    return values


def refuse_unknown(
    parsed: argparse.Namespace, rest: Sequence[str], keys: Iterable[str] = (), cls: type[ESConfig] = RunConfig
) -> None:
    """Raise ConfigError for arguments that are no flags of the command and for keys (of a file) that are no settings,
    all at once: those of other trainers, with the reason, and misspellings.
    """
    see = f"see `seedtune {parsed.command} --help`"
    flags = [argument[2:].split("=")[0].replace("-", "_") for argument in rest if argument.startswith("--")]
    if of_train := [flag for flag in flags if flag in ("config", "resume", "dry_run")]:
        raise ConfigError(f"--{of_train[0].replace('_', '-')}: not for this command; {see}.")
    for flag in flags:
        if near := _own_flag(flag, parsed, cls):
            raise ConfigError(f"there is no --{flag}. Did you mean {near}? {see.capitalize()}.")
    check_keys(cls, dict.fromkeys([*flags, *keys]))
    if flags:
        raise ConfigError(f"{', '.join(f'--{flag}' for flag in flags)}: not for this command; {see}.")
    if rest and rest[0] in TASKS:
        raise ConfigError(f"unexpected argument {rest[0]!r}. Did you mean --task {rest[0]}?")
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}: settings are given as --name value; {see}.")


def _own_flag(flag: str, parsed: argparse.Namespace, cls: type[ESConfig]) -> str | None:
    """The flag of the command, no setting, that was meant."""
    settings = {f.name for f in dataclasses.fields(cls)}
    own = {name[2:].replace("-", "_"): name for name in parsed.flags}
    own = {name: spelled for name, spelled in own.items() if name not in settings}
    near = difflib.get_close_matches(flag, own, 1, 0.75)
    return own[near[0]] if near and flag not in settings and not is_known(flag) else None
