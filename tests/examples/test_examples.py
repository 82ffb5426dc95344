"""The examples run, on a tiny model: their settings are as they stand there, but for the model and the lengths."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(tmp_path, tiny_folder, monkeypatch):
    """Run an example in an empty folder, with the tiny model and shorter."""
    monkeypatch.chdir(tmp_path)

    def go(name, **changes):
        source = (EXAMPLES / f"{name}.py").read_text()
        source = re.sub(r"smollm2-135m-instruct|Qwen/Qwen2.5-0.5B-Instruct", str(tiny_folder), source)
        source = re.sub(r"(max_completion_length\"?[=:] ?)\d+", r"\g<1>4", source)
        for old, new in changes.items():
            assert old in source
            source = source.replace(old, new)
        file = tmp_path / f"{name}.py"
        file.write_text(source)
        return runpy.run_path(str(file), run_name="__main__")

    return go


def test_own_reward(run, capsys):
    found = run("own_reward", **{"max_steps=8": "max_steps=1", "eval_steps=4": "eval_steps=1", "< 0.2": "< -1"})
    assert "iteration 1/1" in capsys.readouterr().out
    say = found["begins_with_the_animal"]
    completions = [[{"content": text}] for text in ("Dog", "It is a dog", "A fox")]
    assert say(completions, animal=["dog"] * 3) == [1.0, 1 / 1.8, 0.0]
    assert found["names_one_animal"]([*completions[:2], [{"content": "a dog, a cat"}]], animal=["dog"] * 3) == [1, 1, 0]


def test_two_lines_make_a_script_for_grpo_one_for_es():
    before, after = ((EXAMPLES / f"grpo_{which}.py").read_text().splitlines() for which in ("before", "after"))
    assert len(before) == len(after)
    differ = [(a, b) for a, b in zip(before, after, strict=True) if a != b and not a.startswith('"""')]
    assert differ == [
        ("from trl import GRPOConfig as Config", "from seedtune import ESConfig as Config"),
        ("from trl import GRPOTrainer as Trainer", "from seedtune import ESTrainer as Trainer"),
    ]


def test_the_script_after(run, capsys):
    run("grpo_after", **{"max_steps=20": "max_steps=1"})
    assert "iteration 1/1" in capsys.readouterr().out
    assert Path("runs/short/journal.jsonl").is_file()


@pytest.mark.filterwarnings("ignore")  # TRL's and torch's own
def test_the_script_before(run):
    pytest.importorskip("trl")
    on_a_cpu = {"max_steps=20": "max_steps=1, use_cpu=True, bf16=False, report_to='none'"}
    found = run("grpo_before", **on_a_cpu)
    assert found["trainer"].state.global_step == 1


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_replicas(run, capsys, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr("sys.argv", ["ray_replicas.py"])
    run("ray_replicas", **{'"population_size": 16': '"population_size": 4', '"max_steps": 2': '"max_steps": 1'})
    assert capsys.readouterr().out.endswith("The journals are equal.\n")


def test_exchange_of_a_patch(run, capsys):
    run("exchange_patch", **{"--population_size 16": "--population_size 4 --max_completion_length 4"})
    assert capsys.readouterr().out.endswith("The same bytes.\n")


@pytest.mark.filterwarnings("ignore")  # of the notebook's own machinery
def test_the_notebook(tmp_path, tiny_folder, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    for cell in notebook.cells:
        cell.source = cell.source.replace("smollm2-135m-instruct", str(tiny_folder))
        cell.source = re.sub(r"max_completion_length=\d+", "max_completion_length=4", cell.source)
        cell.source = cell.source.replace("population_size=16", "population_size=4")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    trained = next(cell for cell in notebook.cells if "trainer.train()" in cell.source)
    shown = [out for out in trained.outputs if out.output_type == "display_data"]
    assert len(shown) == 1, "one output, which is redrawn"
    assert "6/6" in shown[0].data["text/html"]
    assert "<svg" in shown[0].data["text/html"]
