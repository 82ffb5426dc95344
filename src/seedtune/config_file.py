"""Configurations as YAML: flat, with commented groups; what a run writes, it can read again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from .config import ESConfig
from .errors import ConfigError


def read(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises ConfigError."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"there is no configuration file {str(path)!r} (looked in {Path.cwd()}).")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not YAML: {e}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines; it holds a {type(values).__name__}.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def to_yaml(config: ESConfig) -> str:
    """Every setting, in commented groups; `read` gives the same values back."""
    lines: list[str] = []
    group = None
    for f in dataclasses.fields(config):
        if f.metadata["group"] != group:
            group = f.metadata["group"]
            lines.append(f"{'' if not lines else chr(10)}# {group}")
        value = getattr(config, f.name)
        value = list(value) if isinstance(value, tuple) else value
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        lines.append(f"{f.name}: {text}  # {f.metadata['help']}")
    return "\n".join(lines) + "\n"
