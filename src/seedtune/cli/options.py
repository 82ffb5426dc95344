"""Settings as flags: every key of a configuration file is also a flag of the same name, hyphens accepted."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..config import ESConfig, check_keys, checks_keys, setting
from ..errors import ConfigError

_DATA = "Model and data"


@checks_keys
@dataclass(frozen=True)
class RunConfig(ESConfig):
    """What the command line needs besides `ESConfig`: which model, which data, which rewards. TRL's names."""

    model_name_or_path: str = setting(
        _DATA, "Hub id, folder, GGUF file, or smollm2-135m-instruct", "smollm2-135m-instruct", learning=False
    )
    task: str | None = setting(_DATA, "a built-in task: conciseness or countdown", None)
    dataset_name: str | None = setting(_DATA, "JSONL, CSV, Parquet, folder, or Hub id; with a 'prompt' column", None)
    dataset_config: str | None = setting(_DATA, "configuration of a Hub dataset", None)
    dataset_train_split: str = setting(_DATA, "split to train on", "train")
    dataset_test_split: str | None = setting(_DATA, "split (or file) to evaluate on", None, learning=False)
    max_train_samples: int | None = setting(_DATA, "train on the first N rows only", None)
    max_eval_samples: int | None = setting(_DATA, "evaluate on the first N rows only", None, learning=False)
    reward_funcs: list[str] | None = setting(_DATA, "built-in name, package.module.function, file.py:function", None)
    eval_funcs: list[str] | None = setting(_DATA, "measured on the centre, never optimised", None, learning=False)


def add_flags(parser: argparse.ArgumentParser, cls: type[ESConfig] = RunConfig, only: Sequence[str] = ()) -> None:
    """A flag for every setting of `cls` (or for those in `only`), in its groups."""
    groups: dict[str, Any] = {}
    fields = [f for f in dataclasses.fields(cls) if not only or f.name in only]
    for f in sorted(fields, key=lambda f: f.metadata["group"] != _DATA):
        group = f.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        names = dict.fromkeys([f"--{f.name}", f"--{f.name.replace('_', '-')}"])
        shown = "" if f.default in (None, "") or "default" in f.metadata["help"] else f" (default: {f.default})"
        kind = str(f.type).replace(" | None", "")
        options: dict[str, Any] = {"dest": f.name, "default": argparse.SUPPRESS, "help": f.metadata["help"] + shown}
        options["metavar"] = _METAVARS.get(kind, "TEXT")
        if kind == "bool":
            options.update(nargs="?", const="true")
        elif kind.startswith("list") or "list" in kind:
            options.update(nargs="+")
        groups[group].add_argument(*names, **options)


_METAVARS = {"int": "N", "float": "X", "bool": "true|false", "dict[str, Any]": "YAML", "list[float]": "X"}


def given(parsed: argparse.Namespace, cls: type[ESConfig] = RunConfig) -> dict[str, Any]:
    """The settings that were given as flags, as values."""
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


def refuse_unknown(rest: Sequence[str], cls: type[ESConfig] = RunConfig) -> None:
    """Raise ConfigError for arguments that no flag took: a GRPO key, or a typing error."""
    for argument in rest:
        if argument.startswith("--"):
            check_keys(cls, {argument[2:].split("=")[0].replace("-", "_"): None})
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}; see --help.")
