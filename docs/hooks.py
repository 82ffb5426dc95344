"""Pages of the site that are made of the code, and those that stand elsewhere in the repository.

Made: settings, command line, errors, keys. From elsewhere: README.md as the home page, benchmarks/*.md, LOG.md,
CHANGELOG.md and CONTRIBUTING.md. Links to files that are no pages become their names; those to what a page is made of
lead to that page, so that they lead somewhere where docs/ is read without the site.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

import seedtune.errors
from seedtune.cli import main
from seedtune.config.refused import REFUSED
from seedtune.config.run_config import RunConfig

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "seedtune"

#: Pages of the site that are files elsewhere.
ELSEWHERE = {
    "index.md": "README.md",
    "log.md": "LOG.md",
    "changelog.md": "CHANGELOG.md",
    "internals/architecture.md": "CONTRIBUTING.md",
    **{f"benchmarks/{file.name}": f"benchmarks/{file.name}" for file in sorted((ROOT / "benchmarks").glob("*.md"))},
}


#: What the pages that are made are made of.
SOURCES = {
    "reference/settings.md": "src/seedtune/config/es_config.py",
    "reference/cli.md": "src/seedtune/cli/main.py",
    "reference/errors.md": "src/seedtune/errors.py",
    "reference/keys.md": "src/seedtune/config/refused.py",
}


def on_config(config: Any) -> Any:
    """Guides that mkdocs.yml does not name stand behind those that it does."""
    [guides] = [section["Guides"] for section in config.nav if isinstance(section, dict) and "Guides" in section]
    named = {page for entry in guides for page in entry.values()}
    for file in sorted([*(ROOT / "docs" / "guides").glob("*.md"), *(ROOT / "docs").glob("*.md")]):
        page = file.relative_to(ROOT / "docs").as_posix()
        if page not in named and page not in ("quickstart.md", "troubleshooting.md"):
            title = next(line for line in file.read_text().splitlines() if line.startswith("# "))
            guides.append({title.removeprefix("# "): page})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    made = {"settings": settings, "cli": command_line, "errors": errors, "keys": keys}
    pages = {f"reference/{name}.md": make() for name, make in made.items()}
    pages |= {uri: (ROOT / path).read_text() for uri, path in ELSEWHERE.items()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    for picture in (ROOT / "benchmarks").glob("*.png"):
        files.append(File.generated(config, f"benchmarks/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as the site has them."""
    uri = page.file.src_uri
    markdown = re.sub(r"(?m)^!\[.*\]\(https://img\.shields\.io/.*\n", "", markdown)  # pages load nothing from elsewhere
    return relink(markdown, uri, {file.src_uri for file in files})


def relink(markdown: str, uri: str, known: set[str]) -> str:
    """Links from where the file stands in the repository, to where pages stand on the site."""
    here = ELSEWHERE.get(uri, f"docs/{uri}")
    pages = {path: there for there, path in (ELSEWHERE | SOURCES).items()} | {f"docs/{page}": page for page in known}
    pages |= {f"benchmarks/{file.name}": f"benchmarks/{file.name}" for file in (ROOT / "benchmarks").glob("*.png")}
    pages["benchmarks"] = "benchmarks/index.md"

    def moved(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        if there not in pages:  # a file of the repository; what is nowhere is left for mkdocs to report
            return text.lstrip("![") if (ROOT / there).exists() else match[0]
        link = os.path.relpath(pages[there], posixpath.dirname(uri) or ".")
        return f"{text}]({link}{'#' + anchor if anchor else ''})"

    return re.sub(r"(!?\[[^\]\[]*)\]\(([^)\s]+)\)", moved, markdown)


def settings() -> str:
    """Every setting, from the dataclass that holds them."""
    lines = [
        "# Settings",
        "",
        "Keys of a YAML file (`--config`), flags of `seedtune train`, and, but for the first group, fields of",
        "`ESConfig`.",
        "Defaults are the paper's. A command that says nothing of members and steps measures them instead",
        "([learning](../guides/learning.md#settings)).",
        "",
        "Below each name: its type, and its default. **w**: the weights depend on it, so it is in the journal and",
        "cannot change on a resume.",
    ]
    group = None
    fields = sorted(dataclasses.fields(RunConfig), key=lambda f: f.name not in _own())
    for f in fields:
        about = f.metadata
        if about["group"] != group:
            group = about["group"]
            lines += ["", f"## {group}", "", "| setting | |", "|---|---|"]
        kind = _cell(str(f.type).replace(" | None", ""))
        default = "" if f.default in (None, "") else f", `{f.default}`"
        mark = " **w**" if about["affects_weights"] else ""
        name = f'<a id="{f.name}"></a>`{f.name}`{mark}<br><small>{kind}{default}</small>'
        lines.append(f"| {name} | {_cell(about['help'])}{_range(about)} |")
    return "\n".join(lines) + "\n"


def _own() -> set[str]:
    return {f.name for f in dataclasses.fields(RunConfig)} - {f.name for f in dataclasses.fields(RunConfig.__base__)}


def _range(about: Any) -> str:
    low, high = about["at_least"], about["at_most"]
    if about["choices"]:
        return ". One of " + ", ".join(f"`{choice}`" for choice in about["choices"])
    if low is not None and high is not None:
        return f". From {low} to {high}"
    return f". At least {low}" if low is not None else ""


def command_line() -> str:
    """Every command and its arguments, from argparse."""
    parser, commands = main._parser()
    choices = parser._subparsers._group_actions[0].choices
    lines = ["# Command line", "", "Exit codes: 0 done, 1 failed, 2 wrong settings, 130 interrupted.", ""]
    known = {f.name for f in dataclasses.fields(RunConfig)}
    for name in commands:
        sub: argparse.ArgumentParser = choices[name]
        lines += ["", f"## seedtune {name}", "", _prose(sub.description or ""), "", "| argument | |", "|---|---|"]
        taken = []
        for action in sub._actions:
            if action.dest in known:
                taken.append(action.dest)
            elif action.dest != "help":
                shown = " ".join([action.option_strings[0] if action.option_strings else "", str(action.metavar or "")])
                lines.append(f"| `{shown.strip()}` | {_cell(action.help or '')} |")
        if lines[-1] == "|---|---|":
            del lines[-2:]
        if len(taken) == len(known):
            lines += ["", "And every [setting](settings.md)."]
        elif taken:
            lines += ["", "And the settings " + ", ".join(f"[`{n}`](settings.md#{n})" for n in taken) + "."]
    return "\n".join(lines) + "\n"


def _prose(text: str) -> str:
    """A docstring; indented lines are code."""
    return re.sub(r"(?m)^ {2}(\S)", r"    \1", text)


def errors() -> str:
    """Every error that is raised on purpose, and its messages, from the source."""
    lines = [
        "# Errors",
        "",
        "Every error that Seedtune raises on purpose, with its messages (… stands for what differs). The command line",
        "prints the message without a traceback, and ends with the exit code.",
    ]
    found = messages()
    for name, error in vars(seedtune.errors).items():
        if not (isinstance(error, type) and issubclass(error, seedtune.errors.SeedtuneError)):
            continue
        lines += ["", f"## {name}", "", f"{error.__doc__} Exit code {error.exit_code}.", ""]
        lines += [f"- {_cell(message)}" for message in sorted(found.get(name, []))]
    return "\n".join(lines) + "\n"


def messages() -> dict[str, set[str]]:
    """The messages of `raise` statements, by the name of the error."""
    names = {name for name, e in vars(seedtune.errors).items() if isinstance(e, type)}
    found: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                name = getattr(node.exc.func, "id", "")
                if name in names and (text := _text(node.exc.args[0])).strip("… .:"):
                    found.setdefault(name, set()).add(" ".join(text.split()))
    return found


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    return "…"


def keys() -> str:
    """Keys of others that are refused, with the reason."""
    lines = [
        "# Keys of TRL and transformers",
        "",
        "A key of TRL's `GRPOConfig`, `ModelConfig` and script arguments, or of transformers' `TrainingArguments`,",
        "works here under its own name ([settings](settings.md)), or is refused with the reason below. Nothing is",
        "ignored in silence.",
        "",
        "| key | why it is refused, and what to set |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| `{key}` | {_cell(reason)} |" for key, reason in sorted(REFUSED.items()))]) + "\n"


def _cell(text: str) -> str:
    """Text in a cell of a table."""
    return re.sub(r"([<*_\[])", r"\\\1", text.replace("\n", " ")).replace("|", "\\|").replace("{", "&#123;")
