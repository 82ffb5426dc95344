"""The version of a build. Hatchling calls `version` (see pyproject.toml).

At a tag `v1.2.3` it is the tag's. Elsewhere, as in clones without tags, archives and images, it is what CHANGELOG.md
begins with: a release, or `Unreleased`, which is a development version of the next minor release. An sdist carries its
own, which builds from it take.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version(root: Path = ROOT) -> str:
    """The version of the checkout, or unpacked archive, in a folder."""
    if tag := tagged(root):
        return tag
    first, *others = re.findall(r"(?m)^## (\S+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if first != "Unreleased":
        return str(first)
    major, minor, _ = others[0].split(".")
    return f"{major}.{int(minor) + 1}.0.dev0"


def tagged(root: Path) -> str:
    """The version that the commit is tagged with, if no file differs from it; else empty."""
    command = ["git", "describe", "--tags", "--exact-match", "--dirty", "--match", "v[0-9]*"]
    around = {"GIT_CEILING_DIRECTORIES": str(root.parent)}  # not of a repository that the folder lies in
    try:
        found = subprocess.run(command, cwd=root, env=os.environ | around, capture_output=True, text=True)
    except OSError:  # no git
        return ""
    tag = found.stdout.strip()
    return "" if found.returncode or tag.endswith("-dirty") else tag.removeprefix("v")
