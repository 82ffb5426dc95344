"""The page of a run or a comparison: what it says, what it does without, and that a browser draws it."""

from __future__ import annotations

import dataclasses
import fcntl
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from seedtune.cli.main import main
from seedtune.compare.plan import Cell
from seedtune.compare.plan import comparison as comparison_of
from seedtune.compare.runner import BASE, Outcome, summary
from seedtune.errors import JournalError, RunFolderError
from seedtune.journal import record
from seedtune.journal.folder import read_lines
from seedtune.report import comparison_page, run_page
from seedtune.report.answers import item
from seedtune.report.figures import pareto, png
from seedtune.report.history import read
from test_compare import cell, compared

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
HOSTILE = "</script><script>alert('x')</script> <b>bold</b> {{ 7 * 7 }}"
SETTINGS = {
    "max_steps": 3, "population_size": 4, "prompts_per_step": 2, "sigma": 0.01, "eval_steps": 1, "device": "cpu",
    "dtype": "float32", "max_completion_length": 6, "save_steps": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder):
    """A run of three iterations whose prompts try to break out of the page, with a truth."""
    folder = tmp_path_factory.mktemp("report")
    rows = [{"prompt": f"{HOSTILE} say {n}"} for n in range(4)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text(
        "def short(completions, **_):\n    return [-float(len(c)) for c in completions]\n"
        "def long(completions, **_):\n    return [float(len(c)) for c in completions]\n"
    )
    flags = [f for key, value in SETTINGS.items() for f in (f"--{key}", str(value))]
    data = ["--model_name_or_path", str(tiny_folder), "--dataset_name", str(folder / "data.jsonl")]
    rewards = ["--reward_funcs", f"{folder / 'own.py'}:short", "--eval_funcs", f"{folder / 'own.py'}:long"]
    assert main(["train", *data, *rewards, *flags, "--output_dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def page_of(run):
    return run_page.write(run).read_text()


def figures_of(page):
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])["specs"]


def test_a_page_says_what_was_learned_what_it_cost_and_how_far_it_moved(run):
    page = html.unescape(page_of(run))
    lines = [line for line in read_lines(run / "metrics.jsonl") if "eval/reward" in line]
    assert "3 iterations of 4 members, 24 answers" in page
    assert "On 4 prompts the mean reward went from" in page
    assert "nats a token from the base model" in page
    assert len(lines) == 4
    assert {p.stem for p in (run / "report").glob("*.png")} == {"training", "plane", "histogram", "timings"}
    specs = figures_of(page_of(run))
    centre = specs["training"]["layer"][2]["data"]["values"]
    assert [c["reward"] for c in centre] == [line["eval/reward"] for line in lines]
    assert [c["generations"] for c in centre] == [0, 8, 16, 24]
    members = specs["training"]["layer"][0]["data"]["values"]
    metrics = [line for line in read_lines(run / "metrics.jsonl") if "reward" in line]
    assert [m["mean"] for m in members] == pytest.approx([line["reward"] for line in metrics])
    assert f"seedtune replay {run}" in page


def test_what_a_model_or_a_dataset_says_stays_text(run):
    page = page_of(run)
    assert "<script>alert" not in page
    assert "<b>bold</b>" not in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page.split('id="figures"')[0])


def test_a_run_without_metrics_is_told_by_its_journal(run):
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "completions")
    shutil.rmtree(run / "checkpoint-3")
    page = html.unescape(page_of(run))
    assert "from the journal alone" in page
    assert set(figures_of(page_of(run))) == {"training", "histogram"}
    assert "seedtune replay rebuilds the weights" in page


def test_torn_metrics_and_a_torn_journal_lose_a_line(run):
    for name in ("metrics.jsonl", "journal.jsonl"):
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[:-20])
    history = read(run)
    assert len(history.journal) == 2
    assert [e["step"] for e in history.evaluations] == [0, 1, 2]
    page = html.unescape(page_of(run))
    assert "was torn" in page
    assert (run / "journal.jsonl").read_bytes()[-1:] != b"\n"  # looked at, never mended


def test_a_fleet_has_a_figure_of_its_own(run):
    lines = read_lines(run / "metrics.jsonl")
    for line in lines:
        if "reward" in line:
            line |= {"fleet/utilisation": 0.75, "fleet/replicas": 2.0, "fleet/lost": 0.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = figures_of(page_of(run))["fleet"]["data"]["values"]
    assert [(v["step"], v["utilisation"], v["replicas"]) for v in values] == [(n, 0.75, 2) for n in (1, 2, 3)]


def test_a_run_that_goes_on_says_so(run):
    with (run / ".lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert "running: iteration 3 of 3" in page_of(run)
    assert "running" not in page_of(run).split("<h1>")[0].split("<main>")[1]


def test_a_run_that_has_just_begun(run):
    data = (run / "journal.jsonl").read_bytes()
    (run / "journal.jsonl").write_bytes(data[: data.index(b"\n") + 1])
    assert "No iteration is done yet" in page_of(run)


def test_no_truth_and_a_hacked_truth(run):
    lines = read_lines(run / "metrics.jsonl")
    for line in lines:
        if line["step"] == 3 and "eval/reward" in line:
            line |= {"eval/hacked": 1.0, "eval/long": -5.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "it may be hacked" in page_of(run)
    for line in lines:
        line.pop("eval/long", None)
        line.pop("eval/hacked", None)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "measured and never optimised" not in page_of(run)


def test_a_folder_that_is_no_run(tmp_path, capsys):
    with pytest.raises(RunFolderError, match="neither a run nor a comparison"):
        run_page.write(tmp_path)
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert main(["report", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_damaged_journal_is_named(run):
    data = (run / "journal.jsonl").read_text().replace('"t":2', '"t":9')
    (run / "journal.jsonl").write_text(data)
    with pytest.raises(JournalError, match="line 3"):
        run_page.write(run)


def answers(*texts):
    return [{"prompt": HOSTILE, "completion": t, "reward": float(-len(t)), "right": 1.0, "tokens": 2} for t in texts]


def comparison(tmp_path, **options):
    cells = [cell("base", 0, (0, -100, 0.0, 0.5)), cell("es", 1, (100, -50, 0.1, 0.5), (200, -20, 0.2, 0.4)),
             cell("grpo", 1, (100, -70, 0.05, 0.5), (200, -40, 0.1, 0.6))]  # fmt: skip
    for c, text in zip(cells, ("a long answer", "short", "shorter"), strict=True):
        c["result"]["points"][-1]["completions"] = answers(text, "same")
    it = {**compared(*cells, planned=["es-seed1", "grpo-seed1"]), **options}
    (tmp_path / "comparison.json").write_text(json.dumps(it))
    return tmp_path


def test_a_comparison_has_its_claims_curves_and_answers(tmp_path):
    page = html.unescape(comparison_page.write(comparison(tmp_path)).read_text())
    assert "Mean reward at the end: es -20.0; grpo -40.0. The base model earns -100." in page
    specs = figures_of(page)
    assert set(specs) == {"curves", "clock", "plane", "truth"}
    es = [(p["generations"], p["value"]) for p in specs["curves"]["data"]["values"] if p["label"] == "es"]
    assert es == [(0, -100), (100, -50), (200, -20)]
    assert "<script>alert" not in (tmp_path / "report" / "index.html").read_text()
    assert "2 of 2 trainings" in page


def test_a_comparison_with_cells_missing_and_no_truth(tmp_path):
    folder = comparison(tmp_path, truth=None, planned=["es-seed1", "grpo-seed1", "grpo-seed2"], target=None)
    page = comparison_page.write(folder).read_text()
    assert "grpo-seed2 has not been run." in page
    assert "2 of 3 trainings" in page
    assert "truth" not in figures_of(page)
    (folder / "comparison.json").write_text(json.dumps({**compared(), "planned": ["es-seed1"]}))
    assert "No training is done yet." in comparison_page.write(folder).read_text()
    (folder / "comparison.json").write_text('{"cells": [')
    with pytest.raises(RunFolderError, match="damaged"):
        comparison_page.write(folder)


def test_the_pareto_front_is_what_nothing_beats():
    points = [{"reward": r, "kl": k} for r, k in ((1, 0), (2, 1), (1.5, 2), (3, 2), (0, 0), (3, 2))]
    assert pareto(points) == [points[0], points[1], points[3], points[5]]


def test_answers_are_sorted_by_what_became_of_them():
    old, new = (
        {"prompt": "p", "completion": c, "reward": r, "right": t} for c, r, t in (("a", 1.0, 1.0), ("b", 2.0, 0.0))
    )
    assert item("p", [("before", old), ("after", new)], ["right"])["kinds"] == ["better", "lost-right"]
    assert item("p", [("before", old), ("after", old)], ["right"])["kinds"] == ["same"]


def test_members_that_were_left_out_leave_a_gap_and_no_blank(run):
    lines, chain = [], record.ROOT
    for text in (run / "journal.jsonl").read_text().splitlines():
        line = {k: v for k, v in json.loads(text).items() if k != "chain"}
        if line.get("t") == 2:
            line |= {"rewards": ["nan", *line["rewards"][1:]], "dropped": [0]}
        sealed, chain = record.seal(line, chain)
        lines.append(sealed)
    (run / "journal.jsonl").write_text("".join(lines))
    second = read(run).members[1]
    assert second["mean"] == pytest.approx(np.mean([float.fromhex(r) for r in json.loads(lines[2])["rewards"][1:]]))


def test_a_method_that_hacked_is_flagged(tmp_path):
    rows = [[{"reward": r, "right": t} for t in truths] for r, truths in ((-9, [1] * 8), (-1, [0] * 8), (-5, [1] * 8))]
    cells = [Cell(label, label, "", {}, 1) for label in ("es", "grpo")]
    plan = comparison_of({"task": "conciseness", "seeds": [1]})
    plan = dataclasses.replace(plan, truth="right", cells=tuple(cells))
    outcomes = [
        Outcome(c, {"points": [{"metrics": {}, "completions": r}]}) for c, r in zip([BASE, *cells], rows, strict=True)
    ]
    told = {c["label"]: c["hacked"] for c in summary(plan, outcomes)["cells"]}
    said = "the reward may be hacked: it rose from -9 to -1, while right fell from 1 to 0"
    assert told == {"base": [], "grpo": [], "es": [said]}
    it = json.loads((comparison(tmp_path) / "comparison.json").read_text())
    it["cells"][1]["hacked"] = told["es"]
    (tmp_path / "comparison.json").write_text(json.dumps(it))
    assert "es-seed1: the reward may be hacked" in comparison_page.write(tmp_path).read_text()


def browse(page, tmp_path, script="", *options):
    """What a browser makes of the page: its document, and what went to its console."""
    copy = tmp_path / "browsed.html"
    before, after = page.read_text().rsplit("</body>", 1)
    copy.write_text(f"{before}<script>{script}</script></body>{after}")
    options = [*options, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    options.append("--enable-logging=stderr")
    command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on this machine")
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_a_browser_draws_the_figures_and_filters_the_answers(kind, run, tmp_path):
    page = run_page.write(run) if kind == "run" else comparison_page.write(comparison(tmp_path))
    seen, console = browse(page, tmp_path)
    assert console == []
    assert 'data-drawn="yes"' in seen
    specs = figures_of(page.read_text())
    assert len(specs) == 4
    for name in specs:
        assert re.search(rf'id="{name}"[^>]*>\s*<svg', seen), name
    assert seen.count('class="item"') == (4 if kind == "run" else 2)
    word = "say 2" if kind == "run" else "shorter"
    script = f'text.value = "{word}"; text.dispatchEvent(new Event("input"));'
    seen, console = browse(page, tmp_path, script)
    assert console == []
    assert len(re.findall(r'class="item"[^>]*hidden=""', seen)) == (3 if kind == "run" else 1)
    assert "1 shown" in seen


@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on this machine")
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_it_fits_a_phone_and_goes_dark(kind, run, tmp_path):
    page = run_page.write(run) if kind == "run" else comparison_page.write(comparison(tmp_path))
    script = (
        "const root = document.documentElement, told = document.createElement('output');"
        "const colour = getComputedStyle(document.body).backgroundColor;"
        "told.textContent = `wide ${root.scrollWidth - root.clientWidth} ${colour}`;"
        "document.body.append(told);"
    )
    phone, seen = "--window-size=390,800", r"wide (\d+) rgb\((\d+), (\d+), (\d+)\)"
    light, dark = (
        re.search(seen, browse(page, tmp_path, script, phone, *options)[0])
        for options in ([], ["--blink-settings=preferredColorScheme=0"])
    )
    assert int(light[1]) == int(dark[1]) == 0, "nothing is wider than the screen"
    assert sum(map(int, light.groups()[1:])) > 600 > 200 > sum(map(int, dark.groups()[1:]))


def test_a_figure_is_a_png(run):
    run_page.write(run)
    assert (run / "report" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert png({"mark": "bar", "data": {"values": []}}, width=100).startswith(b"\x89PNG")


def test_the_command_writes_the_page_and_watches_until_the_run_ends(run, tmp_path, capsys):
    assert main(["report", str(run), "--watch", "--out", str(tmp_path / "page")]) == 0
    assert str(tmp_path / "page" / "index.html") in capsys.readouterr().out
    assert main(["report", str(run), "--every", "0"]) == 2
    assert main(["report", str(comparison(tmp_path / "page"))]) == 0
    assert "curves.png" in {p.name for p in (tmp_path / "page" / "report").iterdir()}
