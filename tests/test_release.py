"""What is released: the wheel has what it needs, and the files around it say what is true."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import Distribution
from importlib.metadata import version as installed
from pathlib import Path
from runpy import run_path

import pytest
import yaml

import seedtune

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = run_path(str(ROOT / "scripts" / "version.py"))["version"]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return {key.lower().replace("_", "-"): v for key, _, v in (line.partition("==") for line in lines if "==" in line)}


def bounds():
    """Name and least version of what is required."""
    found = [re.fullmatch(r"([\w.-]+)>=([\d.]+).*", text) for text in PROJECT["dependencies"]]
    return {match[1].lower().replace("_", "-"): match[2] for match in found}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist, and with the wheel that is built from it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    [file] = dist.glob("*.whl")
    return file


def test_the_wheel_holds_what_is_read_at_run_time(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path for path in (ROOT / "src" / "seedtune").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    sources = {path for path in sources if path.suffix not in (".pyc", ".nbi", ".nbc")}
    assert {path.relative_to(ROOT / "src").as_posix() for path in sources} <= names
    assert "seedtune/cli/demo.yaml" in names


def test_wheel_and_sdist_have_the_version_of_the_checkout(dist):
    names = [f"seedtune-{VERSION()}-py3-none-any.whl", f"seedtune-{VERSION()}.tar.gz"]
    assert sorted(file.name for file in dist.iterdir()) == names


def test_the_package_says_the_version_that_is_installed():
    assert seedtune.__version__ == installed("seedtune")


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A repository whose one commit is tagged v0.3.0."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## Unreleased\n\n- ...\n\n## 0.1.4\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "first")
    git(tmp_path, "tag", "v0.3.0")
    return tmp_path


def test_a_tag_is_the_version(checkout):
    assert VERSION(checkout) == "0.3.0"
    git(checkout, "tag", "--force", "--annotate", "--message", "of notes", "v0.3.0")
    assert VERSION(checkout) == "0.3.0"


def test_a_commit_without_a_tag_of_ours_has_the_next_version(checkout):
    git(checkout, "commit", "--allow-empty", "--message", "second")
    git(checkout, "tag", "nightly")
    assert VERSION(checkout) == "0.2.0.dev0"


def test_files_that_differ_from_the_tag_have_not_its_version(checkout):
    with (checkout / "CHANGELOG.md").open("a") as file:
        file.write("\n")
    assert VERSION(checkout) == "0.2.0.dev0"


def test_without_git_the_changelog_says_the_version(checkout, monkeypatch):
    shutil.rmtree(checkout / ".git")
    assert VERSION(checkout) == "0.2.0.dev0"
    (checkout / "CHANGELOG.md").write_text("# Changes\n\n## 0.2.0\n\n## 0.1.4\n")
    assert VERSION(checkout) == "0.2.0"
    monkeypatch.setenv("PATH", os.devnull)
    assert VERSION(checkout) == "0.2.0"


def test_an_archive_within_another_repository_has_not_its_version(checkout):
    archive = checkout / "seedtune"
    archive.mkdir()
    shutil.copy(checkout / "CHANGELOG.md", archive)
    git(checkout, "add", ".")
    git(checkout, "commit", "--amend", "--no-edit")
    git(checkout, "tag", "--force", "v0.3.0")
    assert VERSION(checkout) == "0.3.0"
    assert VERSION(archive) == "0.2.0.dev0"


def test_oldest_versions_are_those_that_are_allowed():
    oldest, least = pins("constraints-oldest.txt"), bounds()
    assert set(least) <= set(oldest)
    for name, version in least.items():
        assert (oldest[name] + ".0.0.0").startswith(version), name


def test_every_requirement_is_pinned():
    assert set(bounds()) <= set(pins("constraints.txt"))


def test_the_citation_is_of_the_newest_release():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"(?m)^## (\d\S+)$", (ROOT / "CHANGELOG.md").read_text())[1]
    assert (cited["version"], cited["license"]) == (newest, PROJECT["license"])
    assert any("2509.24372" in reference["url"] for reference in cited["references"])


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda f: f.stem)
def test_workflows_and_templates_are_yaml_and_name_what_there_is(file):
    text = file.read_text()
    assert yaml.safe_load(text)
    makefile = (ROOT / "Makefile").read_text()
    for target in [*re.findall(r"run: make ([\w-]+)", text), *re.findall(r"test-(?:oldest|newest)", text)]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_requirement_has_its_license():
    listed = (ROOT / "LICENSES.md").read_text().lower().replace("_", "-")
    extras = PROJECT["optional-dependencies"]
    extra = [
        re.match(r"[\w.-]+", text)[0]
        for name in ("trl", "ray", "quantized", "reasoning-gym", "verifiers")
        for text in extras[name]
    ]
    assert [name for name in [*bounds(), *extra] if f"| {name} |" not in listed] == []
    assert "not stated" not in listed
    assert "gpl" not in listed


@pytest.fixture
def installed_package(tmp_path):
    """Writes a package without a license in its metadata, as pip leaves it: its files are given by their names."""

    def install(**files):
        about = tmp_path / "some_ext-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.4\nName: some-ext\nVersion: 1.0\n")
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        (about / "RECORD").write_text("".join(f"{name}.py,,\n" for name in files))
        return Distribution.at(about)

    return install


def test_a_license_that_stands_in_source_files_alone_is_found(installed_package):
    license_of = run_path(str(ROOT / "scripts" / "licenses.py"))["license_of"]
    head = "# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0\n"
    assert license_of(installed_package(code="x = 1\n", stub=f"# Copyright\n{head}")) == "Apache-2.0 (head of stub.py)"


def test_a_package_that_says_nothing_has_no_license(installed_package):
    license_of = run_path(str(ROOT / "scripts" / "licenses.py"))["license_of"]
    mentioned = "\n" * 100 + "# see http://www.apache.org/licenses/\n"
    assert license_of(installed_package(code=mentioned, gone="x = 1\n")) == "not stated"


@pytest.mark.parametrize("file", ["Dockerfile", "Makefile", "README.md", "docs/quickstart.md"])
def test_the_torch_that_is_installed_first_is_the_one_that_is_pinned(file):
    named = re.findall(r"torch==([\d.]+)", (ROOT / file).read_text())
    assert set(named) == {pins("constraints.txt")["torch"]}
