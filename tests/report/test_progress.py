"""What a run shows on narrow and wide terminals, in a pipe, and in a notebook."""

from __future__ import annotations

import io
import shlex

import pytest
from rich.cells import cell_len
from rich.console import Console

from seedtune.report.progress import Lines, Panel, display
from seedtune.report.summary import Summary

METRICS = {
    "reward": -90.0, "reward_std": 5.0, "completions/mean_length": 12.0, "tokens_per_second": 50.0,
    "es/reliability": 0.2, "es/reliability_error": 0.1, "es/step_kl": 0.04,
}  # fmt: skip
SAMPLE = {"prompt": "Why is the sky blue? " * 9, "completion": "It is\na <b>long</b> answer " * 30}
FACTS = [("model", "tiny: 134.5M parameters, 106.2M of them move (bfloat16)"), ("output", "runs/demo")]
ROW = {"prompt": "What is it? " * 9, "completion": "An answer. " * 30, "reward": -100.0}
NEXT = 'seedtune generate out/checkpoint-best "your prompt" --max_completion_length 64'
SUMMARY = Summary("Done.", [ROW], [ROW], {"eval/reward": -100.0}, {"eval/reward": -20.0}, True, "out", None, [NEXT])


def a_run(progress, steps=3):
    progress.begin(FACTS, 0, steps)
    progress.evaluated(0, {"eval/reward": -100.0, "eval/correct": 0.5, "eval/kl": 0.0})
    for step in range(1, steps + 1):
        for row in range(1, 5):
            progress.rows(row, 4, 20)
        progress.iteration(step, METRICS, SAMPLE)
    progress.evaluated(
        steps, {"eval/reward": -20.0, "eval/correct": 0.75, "eval/kl": 0.2, "es/best_step": float(steps)}
    )


@pytest.mark.parametrize("width", [60, 200])
def test_the_panel_fits_the_terminal(width):
    panel = Panel(Console(file=io.StringIO(), width=width, force_terminal=True, height=40))
    a_run(panel)
    panel.stop()
    plain = Console(file=io.StringIO(), width=width)
    plain.print(panel._draw())
    lines = plain.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) == width
    text = " ".join(" ".join(line.strip("│ ").split()) for line in lines)
    for expected in ("3/3", "-90.0 ± 5.00", "-20.0", "was -100", "correct 0.750", "0.20 ± 0.10", "50 tokens/s"):
        assert expected in text, expected
    assert len(lines) < 20


def test_the_panel_says_what_center_and_members_are():
    panel = Panel(Console(file=io.StringIO(), width=100, force_terminal=True))
    panel.begin([], 0, 3)
    panel.evaluated(0, {"eval/reward": -100.0})
    panel.iteration(1, METRICS, SAMPLE)
    plain = Console(file=io.StringIO(), width=100)
    plain.print(panel._draw())
    panel.stop()
    text = plain.file.getvalue()
    assert "reward of the model itself" in text
    assert "reward of the model with noise, mean ± standard deviation" in text


def closed(width):
    out = io.StringIO()
    Panel(Console(file=out, width=width)).finish(SUMMARY)
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_end_fits_the_terminal(width):
    text = closed(width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "-20.0" in text


def test_completions_stand_under_each_other_where_there_is_no_room_for_columns():
    lines = closed(60).splitlines()
    assert any(line.startswith("  -100  before  An answer. An answer.") for line in lines)
    assert any(line.startswith("  -100  after   An answer.") for line in lines)
    assert not any("│" in line for line in lines)
    row = next(line for line in closed(200).splitlines() if "What is it?" in line)
    assert row.count("An answer. An answer.") >= 2  # before and after


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_command_can_be_copied(width):
    text = closed(width)
    shown = text[text.index("Next:") + len("Next:") :].replace("\\\n", " ")
    assert shlex.split(shown) == shlex.split(NEXT)
    out = io.StringIO()
    Lines(Console(file=out, width=width)).finish(SUMMARY)
    assert f"  {NEXT}\n" in out.getvalue()


def test_a_pipe_gets_a_line_per_iteration_and_no_escapes():
    out = io.StringIO()
    progress = display(Console(file=out))
    assert isinstance(progress, Lines)
    a_run(progress, steps=20)
    lines = out.getvalue().splitlines()
    assert len(lines) == len(FACTS) + 2 + 20
    assert "\x1b" not in out.getvalue()


class Shown:
    """Stands for IPython's handle: keeps what was drawn."""

    def __init__(self, first):
        self.drawn = [first.data]

    def update(self, what):
        self.drawn.append(what.data)


@pytest.fixture
def notebook(monkeypatch):
    pytest.importorskip("IPython")
    from seedtune.report import notebook

    outputs = []

    def show(what, display_id):
        assert display_id
        outputs.append(Shown(what))
        return outputs[-1]

    monkeypatch.setattr(notebook, "display", show)
    return notebook.Notebook(), outputs


def test_a_notebook_has_one_output_that_is_redrawn(notebook):
    progress, outputs = notebook
    progress.stage("Loading the model")
    a_run(progress, steps=20)
    progress.finish(SUMMARY)
    progress.stop()
    [output] = outputs
    assert "Loading the model" in output.drawn[0]
    assert len(output.drawn) <= 2 + 2 * 20, "rows of an iteration do not redraw it each time"
    last = output.drawn[-1]
    assert last.count("<svg") == 1
    assert "20/20" in last
    assert "seedtune generate out/checkpoint-best" in last
    assert "&lt;b&gt;long" in last, "what a model writes is text"


def test_a_notebook_gets_that_display(notebook, monkeypatch):
    console = Console(file=io.StringIO())
    console.is_jupyter = True
    assert type(display(console)) is type(notebook[0])
