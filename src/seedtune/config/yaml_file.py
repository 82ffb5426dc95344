"""Configurations as YAML: flat, with commented groups; what a run writes, it can read again."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..utils.paths import AnyPath, local_path
from .es_config import ESConfig


def read(path: AnyPath) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises ConfigError."""
    file = local_path(path)
    if not file.is_file():
        raise ConfigError(f"there is no configuration file {os.fspath(path)!r} (looked in {Path.cwd()}).")
    try:
        text = file.read_text(encoding="utf-8")
        _check_once(text)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file} is not YAML: {e}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold `key: value` lines; it holds a {type(values).__name__}.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _check_once(text: str) -> None:
    """Raises ConfigError for a key that a mapping holds twice: YAML would drop the first in silence."""
    top = yaml.compose(text, Loader=yaml.SafeLoader)
    twice, seen = list[str](), set[int]()  # an alias is the same node
    nodes: list[Any] = [top]
    while nodes:
        if id(node := nodes.pop()) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        nodes += [value for _, value in node.value]
        lines: dict[str, list[str]] = {}
        for key, _ in node.value:
            name = str(key.value).replace("-", "_") if node is top else str(key.value)
            lines.setdefault(name, []).append(str(key.start_mark.line + 1))
        twice += [f"{key} (lines {' and '.join(at)})" for key, at in lines.items() if len(at) > 1]
    if twice:
        raise ConfigError(f"given more than once: {', '.join(twice)}. Leave one of each.")


def to_yaml(config: ESConfig) -> str:
    """Every setting, in commented groups; `read` gives the same values back, but for secrets."""
    lines: list[str] = []
    group = None
    for f in dataclasses.fields(config):
        if f.metadata["group"] != group:
            group = f.metadata["group"]
            lines.append(f"{'' if not lines else chr(10)}# {group}")
        value = None if f.metadata["secret"] else getattr(config, f.name)
        value = list(value) if isinstance(value, tuple) else value
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        lines.append(f"{f.name}: {text}  # {f.metadata['help']}")
    return "\n".join(lines) + "\n"
