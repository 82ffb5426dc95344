"""What is released: the wheel has what it needs, and the files around it say what is true."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import seedtune

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return {key.lower().replace("_", "-"): v for key, _, v in (line.partition("==") for line in lines if "==" in line)}


def bounds():
    """Name and least version of what is required."""
    found = [re.fullmatch(r"([\w.-]+)>=([\d.]+).*", text) for text in PROJECT["dependencies"]]
    return {match[1].lower().replace("_", "-"): match[2] for match in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = folder.glob("*.whl")
    return file


def test_the_wheel_holds_what_is_read_at_run_time(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path for path in (ROOT / "src" / "seedtune").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    sources = {path for path in sources if path.suffix not in (".pyc", ".nbi", ".nbc")}
    assert {path.relative_to(ROOT / "src").as_posix() for path in sources} <= names
    assert "seedtune/cli/demo.yaml" in names


def test_the_wheel_has_the_version_of_the_package(wheel):
    assert wheel.name == f"seedtune-{seedtune.__version__}-py3-none-any.whl"
    assert PROJECT["version"] == seedtune.__version__


def test_oldest_versions_are_those_that_are_allowed():
    oldest, least = pins("constraints-oldest.txt"), bounds()
    assert set(least) <= set(oldest)
    for name, version in least.items():
        assert (oldest[name] + ".0.0.0").startswith(version), name


def test_every_requirement_is_pinned():
    assert set(bounds()) <= set(pins("constraints.txt"))


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert any("2509.24372" in reference["url"] for reference in cited["references"])
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda f: f.stem)
def test_workflows_and_templates_are_yaml_and_name_what_there_is(file):
    text = file.read_text()
    assert yaml.safe_load(text)
    makefile = (ROOT / "Makefile").read_text()
    for target in [*re.findall(r"run: make ([\w-]+)", text), *re.findall(r"test-(?:oldest|newest)", text)]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_requirement_has_its_license():
    listed = (ROOT / "LICENSES.md").read_text().lower().replace("_", "-")
    assert [name for name in bounds() if f"| {name} |" not in listed] == []
    assert "not stated" not in listed.partition("## what the extras")[0]
    assert "gpl" not in listed


def test_the_image_takes_the_torch_that_is_pinned():
    assert f"torch=={pins('constraints.txt')['torch']}" in (ROOT / "Dockerfile").read_text()
