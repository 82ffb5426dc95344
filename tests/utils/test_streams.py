"""Output that cannot be written as it is ends nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from seedtune.report.progress import Lines, Panel
from seedtune.report.summary import Summary
from seedtune.utils.files import read_lines, write_lines
from seedtune.utils.streams import Tolerant, tolerant, tolerant_output

METRICS = {"reward": 0.5, "reward_std": 0.1, "completions/mean_length": 3.0, "es/reliability": 0.5}
ROW = {"prompt": "wie groß — 日本", "completion": "σ ≤ 1 … 日", "reward": 1.0}
SUMMARY = Summary(
    "Done.", [ROW] * 2, [ROW] * 2, {"eval/reward": 0.1}, {"eval/reward": 0.2, "step": 1}, True, "o", "c", []
)


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def written(to):
    to.flush()
    return to.buffer.getvalue().decode(to.encoding)


def show(display):
    display.begin([("model", "tiny — ü")], 0, 2)
    display.rows(1, 2, 3)
    display.iteration(1, METRICS, ROW)
    display.evaluated(1, {"eval/reward": 0.1})
    display.evaluated(2, {"eval/reward": 0.2})
    display.finish(SUMMARY)
    display.stop()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("display", [Lines, Panel])
def test_displays_on_every_encoding(display, encoding):
    to = stream(encoding)
    show(display(Console(file=to, force_terminal=display is Panel, width=100)))
    assert ("0.500 ± 0.100" if encoding != "ascii" else "0.500 +/- 0.100") in written(to)


def test_what_cannot_be_encoded_is_replaced_sign_by_sign():
    to = stream("latin-1")
    print("±…ü日\udc80", file=Tolerant(to))
    assert written(to) == "±...ü??\n"


def test_half_a_surrogate_pair_is_written_and_read(tmp_path):
    """What a reward function logs may come from bytes that are no UTF-8 (os.fsdecode)."""
    rows = [{"note": "a \udc80 ü"}]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert read_lines(tmp_path / "rows.jsonl") == rows


class Failing(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    flush = close = lambda self: None


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left"), ValueError("closed file")])
def test_what_cannot_be_written_is_dropped(error):
    show(Lines(Console(file=Failing(error))))
    show(Panel(Console(file=Failing(error), force_terminal=True)))


def test_standard_output_is_whatever_it_is_then(capsys, monkeypatch):
    console = tolerant(Console())
    console.print("seen")
    assert capsys.readouterr().out == "seen\n"
    monkeypatch.setattr(sys, "stdout", None)
    console.print("nobody sees it")
    assert not console.is_terminal


def test_the_command_line_gives_streams_back(capsys):
    before = sys.stdout, sys.stderr
    with tolerant_output():
        print("±")
        assert isinstance(sys.stdout, Tolerant)
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "±\n"


CODE = (
    "import sys; from seedtune.report.progress import display; from seedtune.utils.streams import tolerant_output\n"
    "from test_streams import METRICS, ROW\n"
    "d = display(); d.begin([], 0, 2)\n"
    "for n in range(3000): d.iteration(1, METRICS, ROW)\n"
    "with tolerant_output():\n    for n in range(3000): print('±')\n"
    "print('done', file=sys.stderr)\n"
)


def run(code, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]), **options}
    return subprocess.run(["sh", "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("redirection", ["| head -n 1", "> /dev/full", ">&-", "> /dev/null"])
def test_a_process_goes_on_without_its_reader(redirection):
    done = run(f'"{sys.executable}" -c "$CODE" {redirection}', CODE=CODE, PYTHONIOENCODING="ascii")
    assert "done" in done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_the_command_line_prints_on_an_ascii_console(tmp_path):
    flags = "'--task', 'conciseness', '--run_name', '±', '--output_dir', '$OUT'"
    run_py = f"from seedtune.cli.main import main; print(main(['train', '--dry-run', {flags}]))"
    done = run(f'"{sys.executable}" -c "{run_py}"', OUT=str(tmp_path), PYTHONIOENCODING="ascii")
    assert done.stdout.endswith("0\n"), done.stderr
    assert "±" not in done.stdout


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_leads_nowhere_and_scoring_processes_start(tmp_path, closed):
    """As of a service, or pythonw."""
    (tmp_path / "r.py").write_text("def f(completions, **kwargs):\n    print('x')\n    return [1.0]\n")
    script = tmp_path / "script.py"
    script.write_text(
        "from seedtune.rewards.call import Batch\nfrom seedtune.rewards.function import reward_functions\n"
        "from seedtune.rewards.scorer import Scorer\n"
        f"with Scorer(reward_functions('{tmp_path}/r.py:f'), workers=1, timeout=60) as scorer:\n"
        "    scores = scorer.gather([scorer.submit(Batch(['q'], ['c'], [[1]], {}))])\n"
        f"open('{tmp_path}/done', 'w').write(str(scores[0][0].rewards))\n"
    )
    subprocess.run(["bash", "-c", f"{sys.executable} {script} {closed}"], check=True, timeout=120)
    assert (tmp_path / "done").read_text() == "[1.0]"
