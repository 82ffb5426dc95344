"""The licenses of what Seedtune requires, as a table: of every package that an installation brings, and of extras.

python scripts/licenses.py > LICENSES.md
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

#: Extras that users install; tests and documentation are not shipped.
EXTRAS = ("trl", "math", "ray", "quantized", "reasoning-gym", "verifiers")

#: Sentences of licenses, for packages whose metadata name none.
SENTENCES = {
    "http://www.apache.org/licenses/": "Apache-2.0",
    "Permission is hereby granted, free of charge": "MIT",
    "Redistribution and use in source and binary forms": "BSD",
}

#: Lines of a source file in which its license may be named.
HEAD = 30

ROOT = Path(__file__).parents[1]


def main() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for extra in EXTRAS for text in project["optional-dependencies"][extra]]
    base = needed(project["dependencies"])
    more = {key: d for key, d in needed(extras).items() if key not in base}
    lines = [
        "# Licenses of dependencies",
        "",
        "Written by `make licenses` from the metadata of the installed packages, at the versions of `constraints.txt`,",
        "for a CPU build of torch (that of PyPI for Linux brings NVIDIA's libraries along, under NVIDIA's licenses).",
        "Seedtune is Apache-2.0; so are the embedded model, SmolLM2-135M-Instruct, and the package that holds it.",
    ]
    for title, found in (("What every installation has", base), (f"What the extras {', '.join(EXTRAS)} add", more)):
        lines += ["", f"## {title}", "", "| package | license |", "|---|---|"]
        lines += [f"| {d.metadata['Name']} | {license_of(d)} |" for _, d in sorted(found.items())]
    return "\n".join(lines)


def needed(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The packages, and all that they require themselves; what is not installed here is left out."""
    found: dict[str, Distribution] = {}
    todo = [(text, "") for text in requirements]
    done = set()
    while todo:
        asked, extra = todo.pop()
        requirement = Requirement(asked)
        if (asked, extra) in done or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        done.add((asked, extra))
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        found[re.sub(r"[-_.]+", "-", requirement.name).lower()] = package
        todo += [(text, e) for text in package.requires or [] for e in ("", *requirement.extras)]
    return found


def license_of(package: Distribution) -> str:
    """By its expression, else its classifiers, else the first line of what it says, else the license file that it
    brings, else what stands at the head of its source files, which is then named.
    """
    about = package.metadata
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    named = ", ".join(c for c in classifiers if c != "OSI Approved")
    said = str(about["License-Expression"] or named or about["License"] or "").strip()
    if said:
        return said.splitlines()[0].replace("|", "\\|")
    files = [package.read_text(f"licenses/{name}") or "" for name in about.get_all("License-File") or []]
    if found := _license_in("\n".join(files)):
        return found
    for file in package.files or []:
        path = Path(str(file.locate()))
        if path.suffix in (".py", ".pyi") and path.is_file():
            head = path.read_text(errors="replace").splitlines()[:HEAD]
            if found := _license_in("\n".join(head)):
                return f"{found} (head of {file})"
    return "not stated"


def _license_in(text: str) -> str | None:
    return next((name for sentence, name in SENTENCES.items() if sentence in text), None)


if __name__ == "__main__":
    print(main())
