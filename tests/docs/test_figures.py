"""Every figure of the README was measured: it stands in benchmarks/results or in a table of benchmarks/*.md, or is a
fact of the code. A figure that is in no list here fails.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

import pages
from seedtune.engines.embedded import WHEEL_MB

BENCHMARKS = pages.ROOT / "benchmarks"
README = (pages.ROOT / "README.md").read_text()

#: Phrases of the README with a figure, and the name of what was measured in benchmarks/results.
MEASURED = {
    "2.1 times what loading": "memory_over_fp32",
    "at 2.3 times": "memory_over_fp32_lowrank",
    "9.4 times as fast": "lowrank_over_fullrank",
}
#: Phrases that say what the row of benchmarks/comparison.md, or of demo.md, says.
TABLES = {
    "384 completions per training": ("comparison.md", "384: 6 iterations of ES"),
    "2.4 times as far": ("comparison.md", "2.4 times as far"),
    "a miss of 24 with 44 % correct": ("comparison.md", "| ES, 1,536 | 24 ± 5 | 44 ± 12 % |"),
    "ends at 0.6 with 33 %": ("comparison.md", "| GRPO, 1,536 | 0.6 ± 0.2 | 33 ± 12 % |"),
    "a file of 3.9 kB": ("demo.md", "3,910 bytes"),
    "106 held-out problems": ("comparison.md", "106 held-out problems (409 to train on)"),
    "16 times as many": ("comparison.md", "16 times the completions"),
}
#: Numbers that are no measurements.
FACTS = [
    "Python 3.11 or newer", "Python 3.11 to 3.13", "Linux, Python 3.11", "Python 3.12 and 3.13", f"{WHEEL_MB} MB",
    "Algorithm 2", "SmolLM2-135M", "float32",
    "from 101, it brings the miss to 48 and GRPO to 17,", "(NF4, FP4, LLM.int8)", "Apache-2.0", "EPYC (Zen 4)",
]  # fmt: skip


def results():
    found = {}
    for file in sorted((BENCHMARKS / "results").glob("*.json")):
        found |= json.loads(file.read_text()).get("results", {}) if file.stem not in ("learning", "reliability") else {}
    return found


def agrees(text, value):
    """Whether the figure in a text is the value, rounded as the text rounds it: `7.2 %`, `1,791`, `3.8 kB`."""
    figure = re.search(r"\d[\d,]*\.?\d*", text)[0].replace(",", "")
    scale = 100 if "%" in text else 1e-3 if "kB" in text else 1
    digits = len(figure.partition(".")[2])
    return math.isclose(float(figure), value * scale, abs_tol=0.5 * 10**-digits + 1e-9)


@pytest.mark.parametrize("phrase", MEASURED)
def test_what_the_readme_says_was_measured(phrase):
    assert phrase in README, "it is no longer there: take it out of the list"
    assert agrees(phrase, results()[MEASURED[phrase]])


@pytest.mark.parametrize("phrase", TABLES)
def test_what_the_readme_says_stands_in_a_table(phrase):
    page, text = TABLES[phrase]
    assert phrase in README
    assert text in (BENCHMARKS / page).read_text()


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(page):
    """Rows with their name first, as far as they have figures."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return {cells(line)[0]: cells(line)[1:] for line in lines}


def test_the_comparison_is_that_of_the_benchmark():
    theirs, ours = table((BENCHMARKS / "comparison.md").read_text()), table(README)
    rows = [name for name in ours if name.startswith(("ES, ", "GRPO, ", "base model"))]
    assert len(rows) == 5
    assert all([c.replace(" (337 s)", "") for c in theirs[name]] == ours[name] for name in rows)


def test_the_comparison_on_countdown_is_that_of_the_benchmark():
    theirs, ours = table((BENCHMARKS / "comparison.md").read_text()), table(README)
    rows = [name for name in ours if name.startswith("Countdown, ")]
    assert len(rows) == 5
    assert all([theirs[name][column] for column in (0, 1, 4, 6)] == ours[name] for name in rows)
    few, many = (int(ours[f"Countdown, {name}"][0].replace(",", "")) for name in ("GRPO, 5e-5", "ES by hand"))
    assert many == 16 * few
    grpo, es = (float(ours[f"Countdown, {name}"][3].split()[0]) for name in ("GRPO, 5e-5", "ES by hand"))
    assert es < grpo / 2  # "less than half of the time"


def test_what_follows_from_the_comparison():
    rows = table((BENCHMARKS / "comparison.md").read_text())
    base, es, grpo = (rows[name] for name in ("base model", "ES, learning rate 0.02", "GRPO, learning rate 5e-5"))
    miss = [float(row[0]) for row in (base, es, grpo)]
    assert round(math.log(miss[0] / miss[2]) / math.log(miss[0] / miss[1]), 1) == 2.4
    assert round(337 / float(es[4].split()[0])) == 9  # "a ninth of the time"
    assert round(float(grpo[5].split()[0]) / float(es[5].split()[0])) == 3  # "a third of the memory"
    assert f"from {base[0]}, it brings the miss to {es[0]} and GRPO to {grpo[0]}," in README
    assert float(es[3]) > float(grpo[3])  # "makes an unrelated text less likely"


def test_no_other_figure_stands_in_the_readme():
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)|`[^`]*`", "", text)  # targets of links, and code
    rows = "| ES, ", "| GRPO, ", "| base model", "| Countdown, "
    text = "\n".join(line for line in text.splitlines() if not line.startswith(rows))
    for phrase in [*MEASURED, *TABLES, *FACTS]:
        text = text.replace(phrase, "")
    left = [line for line in text.splitlines() if re.search(r"\d", line)]
    assert not left


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def measured_rows():
    rows = [cells(line) for line in (BENCHMARKS / "index.md").read_text().splitlines() if line.startswith("| ")]
    return [pytest.param(*row[1:], id=row[1].strip("`")) for row in rows[1:]]


@pytest.mark.parametrize(("name", "figure"), measured_rows())
def test_the_table_of_measurements(name, figure):
    assert agrees(figure, results()[name.strip("`")])


def test_pictures_are_those_of_the_script(monkeypatch, tmp_path):
    import importlib.util

    folder = pages.ROOT / "docs" / "pictures"
    spec = importlib.util.spec_from_file_location("draw", folder / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    assert (folder / "how.svg").read_text() == draw.how()
    drawn = draw.points((BENCHMARKS / "comparison.md").read_text())
    assert [(p["reward"], p["kl"]) for p in drawn] == [(-101, 0), (-48, 0.46), (-53, 0.13), (-17, 0.75), (-94, 0.002)]
    assert all(file.stat().st_size < 1_000_000 for file in folder.glob("*.svg"))
    shown = Path(folder / "demo.svg").read_text().replace("&#160;", " ")
    for text in ("before", "after (best)", "-101", "-24.9", "True.", "The best center is the one"):
        assert text in shown
