"""The page of a run or a comparison: what it says, also when files are missing, and that a browser draws it."""

from __future__ import annotations

import dataclasses
import fcntl
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import jinja2
import numpy as np
import pytest
from rich.console import Console

from comparisons import cell, compared
from seedtune.cli.main import main
from seedtune.compare import page as comparison_page
from seedtune.compare.comparison import Cell
from seedtune.compare.comparison import comparison as comparison_of
from seedtune.compare.runner import BASE, Outcome, summary
from seedtune.errors import JournalError, RunFolderError
from seedtune.journal import record
from seedtune.journal.record import Return
from seedtune.journal.store import Journal
from seedtune.report import run_page, signal
from seedtune.report.completions import item
from seedtune.report.figures import pareto, png
from seedtune.report.format import completion_text
from seedtune.report.history import read
from seedtune.report.html import _TEMPLATES as TEMPLATES
from seedtune.report.model_card import model_card
from seedtune.report.progress import Lines, Panel
from seedtune.report.summary import Summary, closing
from seedtune.utils.files import read_lines, write_lines

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
OLD = Path(__file__).parents[1] / "data" / "v0.1.0"
HOSTILE = "</script><script>alert('x')</script> <b>bold</b> {{ 7 * 7 }}"
SETTINGS = {
    "max_steps": 3, "population_size": 4, "prompts_per_step": 2, "sigma": 0.01, "eval_steps": 1, "device": "cpu",
    "dtype": "float32", "max_completion_length": 6, "save_steps": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder):
    """A run of three iterations whose prompts try to break out of the page, with a gold metric."""
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
    """Its page; pictures, which take long to draw, are empty files."""
    with mock.patch("seedtune.report.html.png", return_value=b""):
        return run_page.write(run).read_text()


def figures_of(page):
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])["specs"]


def test_a_page_says_what_was_learned_what_it_cost_and_how_far_it_moved(run):
    page = html.unescape(page_of(run))
    lines = [line for line in read_lines(run / "metrics.jsonl") if "eval/reward" in line]
    assert "3 iterations of 4 members, 24 completions" in page
    assert "On 4 prompts the mean reward went from" in page
    assert "nats per token" in page
    assert len(lines) == 4
    drawn = {"training", "plane", "histogram", "timings", "reliability", "step_kl"}
    assert {p.stem for p in (run / "report").glob("*.png")} == drawn
    specs = figures_of(page_of(run))
    center = specs["training"]["layer"][2]["data"]["values"]
    assert [c["reward"] for c in center] == [line["eval/reward"] for line in lines]
    assert [c["completions"] for c in center] == [0, 8, 16, 24]
    members = specs["training"]["layer"][0]["data"]["values"]
    metrics = [line for line in read_lines(run / "metrics.jsonl") if "reward" in line]
    assert [m["mean"] for m in members] == pytest.approx([line["reward"] for line in metrics])
    assert f"seedtune replay {run}" in page


def test_completions_whose_reward_changed_come_first_and_are_counted(run):
    last = run / "completions" / "eval-3.jsonl"
    rows = read_lines(last)
    for row, reward in zip(rows, (0.0, -1.0, 1.0, 0.0), strict=True):
        row["reward"] = reward
    for step in (1, 2):
        (run / "completions" / f"eval-{step}.jsonl").unlink(missing_ok=True)
    write_lines(last, rows)
    before = [{**row, "reward": 0.0} for row in rows]
    write_lines(run / "completions" / "eval-0.jsonl", before)
    metrics = read_lines(run / "metrics.jsonl")
    metrics[-1]["control"] = {"best_step": 3, "verdict": 1}  # the last evaluation's
    write_lines(run / "metrics.jsonl", metrics)
    page = html.unescape(page_of(run))
    assert "Of their rewards 1 went up, 1 went down, 2 did not change" in page
    kinds = re.findall(r'class="item" data-kind="([^"]*)"', page)
    assert [("better" in k, "worse" in k) for k in kinds] == [(True, False), (False, True), *[(False, False)] * 2]


def test_a_curriculum_has_a_line_per_level(run):
    levels = {"curriculum/open": 2.0, "curriculum/easy": 0.7, "curriculum/hard": 0.1}
    lines = read_lines(run / "metrics.jsonl")
    write_lines(run / "metrics.jsonl", [{**line, **levels} if "reward" in line else line for line in lines])
    drawn = figures_of(page_of(run))["levels"]["layer"][0]["data"]["values"]
    of_first = [{"step": 1, "value": 0.7, "what": "level easy"}, {"step": 1, "value": 0.1, "what": "level hard"}]
    assert drawn[:2] == of_first
    assert len(drawn) == 6


def test_what_a_model_or_a_dataset_says_stays_text(run):
    page = page_of(run)
    assert "<script>alert" not in page
    assert "<b>bold</b>" not in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page.split('id="figures"')[0])


def test_a_run_without_metrics_is_told_by_its_journal(run):
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "completions")
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
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
    assert "was incomplete" in page
    assert (run / "journal.jsonl").read_bytes()[-1:] != b"\n"  # read, not repaired


def with_metrics(run, of_iterations=None, of_evaluations=None):
    """The run with other metrics, a dict per iteration (from 1) and evaluation (from 0), or one for all."""

    def of(changes, step):
        return changes.get(step, {}) if changes and isinstance(next(iter(changes)), int) else changes or {}

    lines = [{**line, **of(of_iterations if "reward" in line else of_evaluations, line["step"])}
             for line in read_lines(run / "metrics.jsonl")]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def without(run, name):
    lines = [{k: v for k, v in line.items() if k != name} for line in read_lines(run / "metrics.jsonl")]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def meanings_of(run):
    return {name: (value, said) for name, value, said in signal.sentences(read(run))}


def test_the_page_draws_how_reliable_rewards_are_and_how_far_steps_go(run):
    lines = [line for line in read_lines(run / "metrics.jsonl") if "reward" in line]
    page = page_of(run)
    specs = figures_of(page)
    for point, line in zip(specs["reliability"]["layer"][1]["data"]["values"], lines, strict=True):
        r, error = line["es/reliability"], line["es/reliability_error"]
        assert point == pytest.approx({"step": line["step"], "reliability": r, "low": r - error, "high": r + error})
    drawn = {(p["what"], p["step"]): p["kl"] for p in specs["step_kl"]["layer"][0]["data"]["values"]}
    for what, name in (("predicted", "es/step_kl"), ("measured", "es/step_kl_measured")):
        assert [drawn[what, line["step"]] for line in lines] == [line[name] for line in lines]
    assert page.count("Is it learning?") == 1
    assert '"control"' not in page
    assert "control" not in read(run).gold_metrics
    with_metrics(run, {"es/step_kl": 0.0, "es/step_kl_measured": 0.0})
    assert "step_kl" not in figures_of(page_of(run))
    with_metrics(run, {1: {"es/step_kl": 9.0}, 2: {"es/step_kl": 0.1}, 3: {"es/step_kl": 0.0}})
    steps = figures_of(page_of(run))["step_kl"]["layer"][0]
    assert steps["encoding"]["y"]["scale"] == {"type": "log"}
    assert [p["kl"] for p in steps["data"]["values"]] == [9.0, 0.1]


@pytest.mark.parametrize(
    ("r", "error", "shown", "said"),
    [
        (0.05, 0.01, "0.05 ± 0.01",
         "About 5 % of what members differ by is signal that other prompts would show again; the 4 members of an "
         "iteration say as much as 0.200 members without noise would, and with four times the prompts each it would be "
         "about 17 %"),
        (0.25, 0.1, "0.25 ± 0.10", "say as much as 1.00 member without noise"),
        (0.15, 0.1, "0.15 ± 0.10",
         "About 15 % of what members differ by is signal that other prompts would show again, but less than two "
         "standard errors from none"),
        (0.15, 0.2, "0.15 ± 0.20", "Within its error of 0"),
        (-0.2, 0.1, "-0.20 ± 0.10", "Within its error of 0"),
    ],
)  # fmt: skip
def test_what_a_reliability_means(run, r, error, shown, said):
    with_metrics(run, {3: {"es/reliability": r, "es/reliability_error": error}})
    value, meaning = meanings_of(run)["reliability"]
    assert value == shown
    assert said in meaning


def test_what_the_correlation_of_pairs_means(run):
    assert "mirrored correlation" not in meanings_of(run)  # members are no pairs
    for values, shown, said in (
        ((0.5, 0.5, 0.2), "0.40", "Mean of 3 iterations: the two members of a pair mostly gain or lose together"),
        ((0.5, -0.8, -0.9), "-0.40", "what one member of a pair gains the other mostly loses"),
        ((0.5, -0.5, 0.03), "0.01", "near 0"),
    ):
        with_metrics(run, {t: {"es/mirrored_correlation": value} for t, value in enumerate(values, 1)})
        value, meaning = meanings_of(run)["mirrored correlation"]
        assert value == shown
        assert said in meaning


@pytest.mark.parametrize(
    ("metrics", "shown", "said"),
    [
        ({"es/step_kl": 0.04, "es/step_kl_measured": 0.04}, "0.040", "by 0.040 nats per token: about 5 such steps in "
         "one direction, or 20 in directions of their own, take it to max_kl, 1 from the base model"),
        ({"es/step_kl": 0.004, "es/step_kl_measured": 0.04}, "0.040", "where 0.004 was predicted"),
        ({"es/step_kl": 4.0, "es/step_kl_measured": 2.0}, "2.00", "far too much, where 1 from the base model counts as "
         "diverged"),
        ({"es/step_kl": 0.0, "es/step_kl_measured": 0.0, "learning_rate": 0.0}, "0", "did not move the center: its "
         "direction was too uncertain to follow, or all members earned the same"),
    ],
)  # fmt: skip
def test_what_a_step_kl_means(run, metrics, shown, said):
    with_metrics(run, {3: metrics})
    value, meaning = meanings_of(run)["step KL"]
    assert value == shown
    assert said in meaning


def test_the_bound_of_kl_is_the_settings_and_a_step_may_be_unmeasured(run):
    file = run / "config.resolved.yaml"
    file.write_text(re.sub(r"(?m)^max_kl: \S+", "max_kl: 4.0", file.read_text()))
    with_metrics(run, {3: {"es/step_kl": 0.04, "es/step_kl_measured": 0.04}})
    assert "about 10 such steps in one direction, or 100 in" in meanings_of(run)["step KL"][1]
    lines = [
        {k: v for k, v in line.items() if k != "es/step_kl_measured"} for line in read_lines(run / "metrics.jsonl")
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "predicted and not measured" in meanings_of(run)["step KL"][1]


@pytest.mark.parametrize(
    ("cost", "said"),
    [(-3.0, "about as much as the center"), (3.0, "about as much as the center"), (9.0, "differ by 5.00"),
     (20.0, "4.00 times their standard deviation")],
)  # fmt: skip
def test_what_noise_costs(run, cost, said):
    with_metrics(run, {"reward_std": 5.0, "es/reward_error": 2.0}, {3: {"es/noise_cost": cost}})
    value, meaning = meanings_of(run)["noise cost"]
    assert value == f"{cost:.2f}"[: len(value)]
    assert said in meaning


def test_a_run_that_returned_says_why_and_shows_its_best_center(run):
    rewards = {0: -9.0, 1: -5.0, 2: -20.0, 3: -10.0}
    with_metrics(run, {}, {t: {"es/best_step": min(t, 1), "eval/reward": r} for t, r in rewards.items()})
    whole, _ = Journal.read(run)
    head = "".join((run / "journal.jsonl").read_text().splitlines(keepends=True)[:3])
    (run / "journal.jsonl").write_text(head)
    journal, _ = Journal.read(run)
    journal.append(Return(2, 1, 0.25, "members' rewards fell"))
    journal.append(whole.iterations[2])
    history = read(run)
    assert (history.best, history.compared["step"]) == (1, 1)
    assert history.after == read_lines(run / "completions" / "eval-1.jsonl")
    assert signal.events(history) == [
        (1, "The best center: reward -5.00."),
        (
            2,
            "Diverged: members' rewards fell. Back to the center after iteration 1, with 0.25 times the learning rate.",
        ),
        (3, "The end; handed back is the center after iteration 1."),
    ]
    page = html.unescape(page_of(run))
    assert "returned to an earlier center once (after iteration 2)" in page
    assert "ended at 0.25 times what was set" in page
    assert (
        "The last center is below the base model (reward -10.0 against -9.00); the best one, the one after iter" in page
    )
    assert "the mean reward went from -9.00 to -5.00" in page
    assert "after iteration 1, the best" in page
    layers = figures_of(page_of(run))["training"]["layer"]
    center = [(c["branch"], c["completions"], c["reward"]) for c in layers[2]["data"]["values"]]
    assert center == [(0, 0, -9.0), (0, 8, -5.0), (0, 16, -20.0), (1, 16, -5.0), (1, 24, -10.0)]
    marks = {layer["data"]["values"][0].get("text"): layer["data"]["values"][0] for layer in layers[3:]}
    assert marks["best"]["completions"] == 8
    assert marks["back to 1"]["completions"] == 16
    assert png(figures_of(page_of(run))["training"]).startswith(b"\x89PNG")


def test_a_run_that_hands_back_its_base_says_so_first(run):
    with_metrics(run, of_evaluations={t: {"es/best_step": 0, "eval/reward": -9.0 - t} for t in range(4)})
    shutil.rmtree(run / "checkpoint-best")
    assert "explains so far. What is shown as after iteration 3 is the last center, which is not kept" in page_of(run)
    (run / "checkpoint-best").mkdir(exist_ok=True)
    page = html.unescape(page_of(run))
    warning = page[page.index('class="warn"') :]
    assert "so the base model is handed back" in warning[:400]
    assert "reward -12.0 against -9.00" in warning[:600]
    assert "after iteration 3, not kept" in page
    assert "handed back is the base model" in page
    assert "--until last" in page
    assert "seedtune export" not in page


def test_a_run_that_ended_below_its_base_without_a_best_center(run):
    with_metrics(run, of_evaluations={t: {"eval/reward": -9.0 - t} for t in range(4)})
    without(run, "es/best_step")
    assert "The run ended below the base model (reward -12.0 against -9.00)" in page_of(run)
    assert read(run).after == read_lines(run / "completions" / "eval-3.jsonl")


@pytest.mark.parametrize("name", ["full", "lowrank"])
def test_a_run_of_before_has_the_page_it_had(tmp_path, name):
    shutil.copytree(OLD / name, tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert set(figures_of(page)) == {"training", "plane", "histogram", "timings"}
    assert "you get its best" not in page
    assert "it is the model you get" in page
    assert len(figures_of(page)["training"]["layer"]) == 3
    body = page.split('id="figures"')[0].split("</style>")[1]
    for absent in ("Is it learning", "What happened", 'class="warn"', "best", "panels", "meanings"):
        assert absent not in body


@pytest.mark.parametrize(("step", "best", "said"), [
    (4, 4, "The center after iteration 4 of Evolution Strategies"),
    (4, 4, "the best center that the run had evaluated"),
    (4, 2, "It is not the best that the run had evaluated when this was written: that is the one after iteration 2."),
    (4, 0, "that is the base model."),
    (4, None, "| center, on the evaluation prompts | before | after |"),
    (0, 0, "# base, unchanged\n\nThe base model, as it came out of a run of"),
    (0, 0, "These are the weights of the base model"),
    (0, 0, "| center, on the evaluation prompts | base model |\n|---|---|\n| reward | -9.00 |\n\n"),
])  # fmt: skip
def test_a_model_card_says_which_center_it_is(step, best, said):
    settings = dict.fromkeys(("population_size", "perturbation", "sigma", "learning_rate", "antithetic",
                              "fitness_shaping", "scope", "optimizer", "dtype", "seed"), 1)  # fmt: skip
    card = model_card(base="base", step=step, digest="0", settings=settings, rewards=["short"], version="1", best=best,
                      metrics_before={"step": 0, "eval/reward": -9.0},
                      metrics_after={"step": 4, "eval/reward": -5.0})  # fmt: skip
    assert said in card
    assert "None" not in card
    assert ("best" in card) == (best is not None and step > 0)


STEPS = [
    {"reward": -90.0, "reward_std": 5.0, "completions/mean_length": 12.0, "tokens_per_second": 50.0,
     "es/reliability": -0.123, "es/reliability_error": 0.08, "es/step_kl": 0.5, "es/step_kl_measured": kl,
     "es/sigma": sigma, "learning_rate": rate}
    for kl, sigma, rate in ((0.0213, 0.0115, 0.02), (0.000214, 0.0115, 0.0312), (0.0213, 0.0077, 0.0312))
]  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
def test_the_panel_shows_the_signal_and_which_center_is_kept(width):
    def drawn(panel):
        plain = Console(file=io.StringIO(), width=width)
        plain.print(panel._draw())
        return plain.file.getvalue()

    panel = Panel(Console(file=io.StringIO(), width=width))
    panel.max_steps = 9
    sample = {"prompt": "p", "completion": "c"}
    panel.evaluated(0, {"eval/reward": -100.0, "es/best_step": 0})
    assert "best" not in drawn(panel)
    panel.iteration(1, STEPS[0], sample)
    line = next(line for line in drawn(panel).splitlines() if "signal" in line)
    assert "reliability -0.12 ± 0.08  step KL 0.021" in line
    assert "sigma" not in drawn(panel)  # they have not changed
    panel.evaluated(1, {"eval/reward": -50.0, "es/best_step": 1, "es/noise_cost": 3.0})
    assert "-50.0  ▁█  was -100  the best so far" in drawn(panel)
    panel.iteration(2, STEPS[1], sample)
    assert "lr 0.0312" in drawn(panel)
    panel.iteration(3, STEPS[2], sample)
    panel.evaluated(3, {"eval/reward": -70.0, "es/best_step": 1})
    assert "sigma 0.0077  lr 0.0312" in " ".join(drawn(panel).replace("│", "").split()).replace(" lr", "  lr")
    assert "kept so far: after 1, -50.0" in drawn(panel)
    panel.evaluated(4, {"eval/reward": -70.0, "es/best_step": 0})
    assert "kept so far: the base" in drawn(panel)
    assert {len(line) for line in drawn(panel).splitlines()} == {width}
    assert "control" not in drawn(panel)


def test_lines_show_the_signal_and_a_run_of_before_has_none():
    out = io.StringIO()
    lines = Lines(Console(file=out, width=200))
    lines.iteration(1, {k: v for k, v in STEPS[0].items() if "es/" not in k}, {})
    assert "50 tokens/s  left" in out.getvalue()
    lines.iteration(2, STEPS[1], {})
    lines.evaluated(2, {"eval/reward": -100.0, "es/best_step": 0})
    lines.evaluated(3, {"eval/reward": -50.0, "es/best_step": 3})
    assert "tokens/s  reliability -0.12 ± 0.08  step KL 0.00021  lr 0.0312  left" in out.getvalue()
    assert "center after 3: reward -50.0  (the best so far)" in out.getvalue()


@pytest.mark.parametrize(
    ("center", "best", "column", "told"),
    [(4, 4, "after (best)", "iteration 4 (the best center):"),
     (0, 0, "after (not kept)", "(the last center, not kept):"),
     (2, 2, "after (not kept)", "(the last center, not kept):"), (4, 2, "after", "iteration 4:"),
     (None, None, "after", "iteration 4:")],
)  # fmt: skip
def test_the_closing_table_says_whether_its_center_is_kept(center, best, column, told):
    row = {"prompt": "p", "completion": "c", "reward": -1.0}
    metrics = {"step": 4, "eval/reward": -1.0}
    out = io.StringIO()
    summary = Summary(
        "Done.", [row], [row], {"step": 0, "eval/reward": -2.0}, metrics, True, "out", None, [], center, best
    )
    Console(file=out, width=120).print(closing(summary))
    head = next(line for line in out.getvalue().splitlines() if "before" in line)
    assert column in [cell.strip() for cell in re.split("[┃│]", head)]
    assert told in out.getvalue()


@pytest.mark.parametrize("name", ["fleet/utilization", "fleet/utilisation"])  # the second: 0.1.0
def test_a_fleet_has_a_figure_of_its_own(run, name):
    lines = read_lines(run / "metrics.jsonl")
    for line in lines:
        if "reward" in line:
            line |= {name: 0.75, "fleet/replicas": 2.0, "fleet/lost": 0.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = figures_of(page_of(run))["fleet"]["data"]["values"]
    assert [(v["step"], v["utilization"], v["replicas"]) for v in values] == [(n, 0.75, 2) for n in (1, 2, 3)]


def test_a_run_that_goes_on_says_so(run):
    with (run / ".lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert "running: iteration 3 of 3" in page_of(run)
    assert "running" not in page_of(run).split("<h1>")[0].split("<main>")[1]


def test_a_run_that_has_just_begun(run):
    data = (run / "journal.jsonl").read_bytes()
    (run / "journal.jsonl").write_bytes(data[: data.index(b"\n") + 1])
    assert "No iteration is done yet" in page_of(run)


def test_no_gold_metric_and_a_hacked_reward(run):
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
    assert "measured and never optimized" not in page_of(run)


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


def completions(*texts):
    return [{"prompt": HOSTILE, "completion": t, "reward": float(-len(t)), "right": 1.0, "tokens": 2} for t in texts]


def comparison(tmp_path, **options):
    cells = [cell("base", 0, (0, -100, 0.0, 0.5)), cell("es", 1, (100, -50, 0.1, 0.5), (200, -20, 0.2, 0.4)),
             cell("grpo", 1, (100, -70, 0.05, 0.5), (200, -40, 0.1, 0.6))]  # fmt: skip
    for c, text in zip(cells, ("a long completion", "short", "shorter"), strict=True):
        c["result"]["points"][-1]["completions"] = completions(text, "same")
    it = {**compared(*cells, planned=["es-seed1", "grpo-seed1"]), **options}
    (tmp_path / "comparison.json").write_text(json.dumps(it))
    return tmp_path


def test_a_comparison_has_its_claims_curves_and_completions(tmp_path):
    page = html.unescape(comparison_page.write(comparison(tmp_path)).read_text())
    assert "Mean reward at the end: es -20.0; grpo -40.0. The base model earns -100." in page
    specs = figures_of(page)
    assert set(specs) == {"curves", "clock", "plane", "gold_metric"}
    es = [(p["completions"], p["value"]) for p in specs["curves"]["data"]["values"] if p["label"] == "es"]
    assert es == [(0, -100), (100, -50), (200, -20)]
    assert "<script>alert" not in (tmp_path / "report" / "index.html").read_text()
    assert "2 of 2 trainings" in page


def test_a_comparison_with_cells_missing_and_no_gold_metric(tmp_path):
    folder = comparison(tmp_path, gold_metric=None, gold_metrics=[], target=None,
                        planned=["es-seed1", "grpo-seed1", "grpo-seed2"])  # fmt: skip
    page = comparison_page.write(folder).read_text()
    assert "grpo-seed2 has not been run." in page
    assert "2 of 3 trainings" in page
    assert "gold_metric" not in figures_of(page)
    (folder / "comparison.json").write_text(json.dumps({**compared(), "planned": ["es-seed1"]}))
    assert "No training is done yet." in comparison_page.write(folder).read_text()
    (folder / "comparison.json").write_text('{"cells": [')
    with pytest.raises(RunFolderError, match="damaged"):
        comparison_page.write(folder)


def test_the_pareto_front_is_what_nothing_beats():
    points = [{"reward": r, "kl": k} for r, k in ((1, 0), (2, 1), (1.5, 2), (3, 2), (0, 0), (3, 2))]
    assert pareto(points) == [points[0], points[1], points[3], points[5]]


def test_completions_are_sorted_by_how_their_scores_changed():
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
    rows = [[{"reward": r, "right": t} for t in gold] for r, gold in ((-9, [1] * 8), (-1, [0] * 8), (-5, [1] * 8))]
    cells = [Cell(label, label, "", {}, 1) for label in ("es", "grpo")]
    plan = comparison_of({"task": "conciseness", "seeds": [1]})
    plan = dataclasses.replace(plan, gold_metrics=("right",), cells=tuple(cells))
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


@pytest.mark.browser
@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on this machine")
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_a_browser_draws_the_figures_and_filters_the_completions(kind, run, tmp_path):
    page = run_page.write(run) if kind == "run" else comparison_page.write(comparison(tmp_path))
    seen, console = browse(page, tmp_path)
    assert console == []
    assert 'data-drawn="yes"' in seen
    specs = figures_of(page.read_text())
    assert len(specs) == (6 if kind == "run" else 4)
    for name in specs:
        assert re.search(rf'id="{name}"[^>]*>\s*<svg', seen), name
    assert seen.count('class="item"') == (4 if kind == "run" else 2)
    word = "say 2" if kind == "run" else "shorter"
    script = f'text.value = "{word}"; text.dispatchEvent(new Event("input"));'
    seen, console = browse(page, tmp_path, script)
    assert console == []
    assert len(re.findall(r'class="item"[^>]*hidden=""', seen)) == (3 if kind == "run" else 1)
    assert "1 shown" in seen


@pytest.mark.browser
@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on this machine")
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_it_fits_a_phone_and_goes_dark(kind, run, tmp_path):
    page = run_page.write(run) if kind == "run" else comparison_page.write(comparison(tmp_path))
    script = (
        "const root = document.documentElement, told = document.createElement('output');"
        "const color = getComputedStyle(document.body).backgroundColor;"
        "told.textContent = `wide ${root.scrollWidth - root.clientWidth} ${color}`;"
        "document.body.append(told);"
    )
    phone, seen = "--window-size=390,800", r"wide (\d+) rgb\((\d+), (\d+), (\d+)\)"
    light, dark = (
        re.search(seen, browse(page, tmp_path, script, phone, *options)[0])
        for options in ([], ["--blink-settings=preferredColorScheme=0"])
    )
    assert int(light[1]) == int(dark[1]) == 0, "nothing is wider than the screen"
    assert sum(map(int, light.groups()[1:])) > 600 > 200 > sum(map(int, dark.groups()[1:]))


#: `npm install --prefix .browser axe-core` puts it there; .ci/run does.
AXE = Path(__file__).parents[2] / ".browser" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.browser
@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on this machine")
@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not there: npm install --prefix .browser axe-core@4.14.1")
@pytest.mark.parametrize("look", [["--window-size=390,800"], ["--blink-settings=preferredColorScheme=0"]])
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_keyboards_and_screen_readers_can_use_it(kind, look, run, tmp_path):
    """By axe-core's rules, none of which is broken, on a phone and in the dark."""
    page = run_page.write(run) if kind == "run" else comparison_page.write(comparison(tmp_path))
    script = f"""{AXE.read_text()}
    const drawn = setInterval(async () => {{
      if (document.body.dataset.drawn !== "yes") return;
      clearInterval(drawn);
      const told = document.createElement("output"), found = await axe.run(document);
      const broken = found.violations.map(rule => `${{rule.id}} ${{rule.nodes[0].html.slice(0, 80)}}`);
      told.textContent = `of ${{found.passes.length}} rules broken: [${{broken.join("; ")}}]`;
      document.body.append(told);
    }}, 50);"""
    seen, _ = browse(page, tmp_path, script, *look)
    count, broken = re.search(r"<output>of (\d+) rules broken: \[(.*)\]</output>", seen, re.DOTALL).groups()
    assert broken == ""
    assert int(count) > 15


def test_figures_have_alternative_texts(run):
    page = run_page.write(run).read_text()
    figures = re.findall(r'<div class="figure" id="\w+" role="img" aria-label="([^"]+)"', page)
    assert len(figures) == len(figures_of(page))
    assert all(len(text) > 20 for text in figures)


@pytest.mark.browser
@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on this machine")
def test_it_prints_on_white(run, tmp_path):
    """In the dark, figures are drawn again for paper; what only a screen can use is left out."""
    page = run_page.write(run)
    script = """
    const told = document.createElement("output");
    const ink = () => document.querySelector(".figure text").getAttribute("fill");
    const wait = setInterval(async () => {
      if (document.body.dataset.drawn !== "yes") return;
      clearInterval(wait);
      const screen = ink();
      await draw(true);
      told.textContent = `ink ${screen} ${ink()}`;
      document.body.append(told);
    }, 50);"""
    seen, _ = browse(page, tmp_path, script, "--blink-settings=preferredColorScheme=0")
    screen, paper = re.search(r"<output>ink (\S+) (\S+)</output>", seen).groups()
    assert screen == "#d7dde3"
    assert paper == "#27313a"
    assert "@media print" in page.read_text()


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


def test_conversations_are_shown_turn_by_turn(tmp_path, monkeypatch):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": HOSTILE, "b": 3}}}
    said = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": HOSTILE},
        {"role": "assistant", "content": "It is 5."},
    ]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}]
    rows = [{"prompt": prompt, "completion": "It is 5.", "messages": m, "reward": 1.0} for m in (said[:1], said)]
    shown = item(prompt, [("before", rows[0]), ("after", rows[1])], [])
    assert shown["prompt"] == "2 + 3?"
    assert shown["earlier"] == [("system", "Be brief.")]
    turns = [completion["turns"] for completion in shown["completions"]]
    assert [who for who, _ in turns[1]] == ["assistant", "add", "assistant"]
    assert turns[1][0][1] == f"add(a={HOSTILE!r}, b=3)"
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    page = environment.from_string('{% import "parts.html" as p with context %}{{ p.browser([shown], []) }}')
    shown_page = page.render(shown=shown)
    assert "<script>" not in shown_page
    assert "1 message before" in shown_page
    assert shown_page.count("<small>assistant</small>") == 2  # a single turn is plain text
    assert completion_text(rows[1], 1000) == f"add(a={HOSTILE!r}, b=3) | add: {HOSTILE} | It is 5."
