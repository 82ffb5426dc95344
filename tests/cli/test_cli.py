"""The command line, as a user meets it: commands on a tiny model, and one clear message for each mistake."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from seedtune.cli.main import main
from seedtune.cli.model_ref import own_settings
from seedtune.compare.comparison import comparison
from seedtune.config.run_config import RunConfig
from seedtune.training.recipe import resolve
from seedtune.utils.files import read_lines
from tiny import save_tiny, tiny_tokenizer

REWARD = "def short(completions, **kwargs):\n    return [-float(len(c)) for c in completions]\n"
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def project(tmp_path, tiny_folder, monkeypatch):
    """A user's folder: ten lines of JSONL, five lines of reward, a flat YAML."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(10)))
    (tmp_path / "reward.py").write_text(REWARD)
    settings = {
        "model_name_or_path": str(tiny_folder), "dataset_name": "data.jsonl", "reward_funcs": "reward.py:short",
        "max_steps": 2, "population_size": 4, "sigma": "1e-2", "max_completion_length": 8, "prompts_per_step": 3,
        "dtype": "float32", "device": "cpu", "output_dir": "out",
        "guard": False, "load_best_model_at_end": False,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def test_train_generate_eval_and_load(project, capsys):
    assert main(["train", "--config", "run.yaml", "--learning-rate", "0.02", "--save_steps=1"]) == 0
    shown = capsys.readouterr().out
    assert "iteration 2/2" in shown
    assert "Training prompts" in shown
    assert "seedtune generate" in shown
    resolved = yaml.safe_load(Path("out/config.resolved.yaml").read_text())
    assert (resolved["sigma"], resolved["learning_rate"]) == (0.01, 0.02)
    AutoModelForCausalLM.from_pretrained("out/checkpoint-2")
    AutoTokenizer.from_pretrained("out/checkpoint-2")

    assert main(["generate", "out", "hello", "there", "--max_completion_length", "4"]) == 0
    assert capsys.readouterr().out.count("> ") >= 2

    command = [
        "eval",
        "out",
        "--dataset_name",
        "data.jsonl",
        "--reward_funcs",
        "reward.py:short",
        "--max_eval_samples",
        "3",
    ]
    assert main([*command, "--max_completion_length", "8", "--json", "result.json"]) == 0
    result = json.loads(Path("result.json").read_text())
    assert len(result["model"]["completions"]) == 3
    assert len(result["model"]["samples"]) == 60
    assert result["model"]["metrics"]["reward"]["mean"] < 0
    assert result["model"]["metrics"]["kl"]["mean"] > 0
    assert "kl" not in result["base"]["metrics"]
    assert "say 0" in capsys.readouterr().out


def test_the_resolved_configuration_repeats_the_run_and_resume_extends_it(project):
    assert main(["train", "--config", "run.yaml"]) == 0
    assert main(["train", "--config", "out/config.resolved.yaml", "--output_dir", "again"]) == 0
    journals = [read_lines(project / d / "journal.jsonl") for d in ("out", "again")]
    assert journals[0] == journals[1]
    assert main(["train", "--resume", "--max_steps", "3"]) == 0
    assert yaml.safe_load(Path("out/config.resolved.yaml").read_text())["max_steps"] == 3  # --resume alone goes to 3
    assert len(read_lines(project / "out" / "journal.jsonl")) == 4
    assert (project / "out" / "checkpoint-3").is_dir()


def test_a_patch_of_a_run_gives_its_bytes_and_can_be_asked_and_measured(project, capsys):
    assert main(["train", "--config", "run.yaml"]) == 0
    assert main(["export", "out", "--patch", "p.seedtune"]) == 0
    assert main(["apply", "p.seedtune", "--out", "applied"]) == 0
    assert main(["replay", "out", "--out", "replayed"]) == 0
    checkpoint = Path("out/checkpoint-2/model.safetensors").read_bytes()
    assert Path("applied/model.safetensors").read_bytes() == checkpoint
    assert Path("replayed/model.safetensors").read_bytes() == checkpoint
    capsys.readouterr()
    asked = [main(["generate", what, "hello", "--max_completion_length", "8"]) for what in ("out", "p.seedtune")]
    assert asked == [0, 0]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert told[0] == told[1]
    command = ["--dataset_name", "data.jsonl", "--reward_funcs", "reward.py:short", "--samples", "2"]
    results = []
    for what in ("out", "p.seedtune"):
        assert main(["eval", what, *command, "--max_completion_length", "8", "--json", "result.json"]) == 0
        results.append(json.loads(Path("result.json").read_text()))
    assert results[0] == results[1]
    shutil.rmtree("out/checkpoint-2")
    assert main(["eval", "out", *command, "--max_completion_length", "8", "--json", "result.json"]) == 0
    assert json.loads(Path("result.json").read_text()) == results[0], "rebuilt from the journal"


def test_a_model_against_itself_is_at_no_kl_and_a_second_task_is_measured_beside(project, tiny_folder, capsys):
    command = ["--dataset_name", "data.jsonl", "--reward_funcs", "reward.py:short", "--max_completion_length", "8"]
    both = [str(tiny_folder), "--base", str(tiny_folder), "--samples", "4", "--k", "1", "4", "--success", "-20"]
    assert main(["eval", *both, *command, "--probe", "conciseness", "--json", "r.json"]) == 0
    result = json.loads(Path("r.json").read_text())["model"]["metrics"]
    assert result["kl"] == {"mean": 0.0, "ci95": 0.0, "n": 40}
    assert 0 <= result["pass@1"]["mean"] <= result["pass@4"]["mean"] <= 1
    assert result["conciseness/correct"]["mean"] == 0
    assert "pass@4" in capsys.readouterr().out


def test_dry_run_writes_the_configuration_and_stops(project, capsys):
    assert main(["train", "--config", "run.yaml", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(Path("out/config.resolved.yaml").read_text())
    assert [p.name for p in Path("out").iterdir()] == ["config.resolved.yaml"]
    assert main(["train", "--config", "out/config.resolved.yaml"]) == 0


def test_dry_run_leaves_a_runs_own_settings_alone(project):
    assert main(["train", "--config", "run.yaml", "--max_steps", "1"]) == 0
    before = Path("out/config.resolved.yaml").read_bytes()
    assert main(["train", "--resume", "--dry-run", "--sigma", "0.5"]) == 0
    assert Path("out/config.resolved.yaml").read_bytes() == before


def test_a_run_is_measured_on_what_it_was_trained_for(project, capsys):
    """The command that the page prints. A patch knows, too; another task is another task."""
    assert main(["train", "--config", "run.yaml"]) == 0
    assert main(["export", "out", "--patch", "p.seedtune"]) == 0
    results = []
    assert main(["eval", "p.seedtune", "--samples", "0"]) == 2
    assert "A patch does not say which code is run" in capsys.readouterr().err
    for what, functions in (("out", []), ("p.seedtune", ["--reward_funcs", "reward.py:short"])):
        assert (
            main(["eval", what, "--samples", "2", "--max_eval_samples", "3", "--json", "result.json", *functions]) == 0
        )
        results.append(json.loads(Path("result.json").read_text())["model"])
    assert results[0] == results[1]
    assert len(results[0]["completions"]) == 3
    assert max(row["tokens"] for row in results[0]["completions"]) <= 8
    assert main(["eval", "out", "--task", "conciseness", "--samples", "0", "--json", "result.json"]) == 0
    assert "correct" in json.loads(Path("result.json").read_text())["model"]["metrics"]


def test_an_evaluation_without_data_or_rewards_says_what_to_give(project, tiny_folder, capsys):
    for flags, says in [
        ([], "there is nothing to evaluate on: set task (conciseness,"),
        (["--reward_funcs", "correct"], "or dataset_name and reward_funcs. Only a run or a patch of a task"),
        (["--dataset_name", "data.jsonl"], "reward_funcs is missing, so nothing says what a good completion is"),
    ]:
        assert main(["eval", str(tiny_folder), *flags]) == 2
        assert says in capsys.readouterr().err
    assert main(["train", "--model_name_or_path", str(tiny_folder)]) == 2
    assert "there is nothing to train on: set task (conciseness," in capsys.readouterr().err


def test_samples_of_given_completions_are_refused(project, tiny_folder, capsys):
    rows = [{"prompt": f"say {n}", "completion": "no"} for n in range(3)]
    Path("given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", str(tiny_folder), "--dataset_name", "given.jsonl", "--reward_funcs", "log_likelihood"]
    for flags in (["--samples", "4"], ["--k", "1"], ["--success", "0"]):
        assert main([*command, *flags]) == 2
        assert f"{flags[0]}: the dataset's own completions are read, and none are drawn" in " ".join(
            capsys.readouterr().err.split()
        )
    assert main([*command, "--json", "result.json"]) == 0
    found = json.loads(Path("result.json").read_text())["model"]
    assert found["metrics"]["loss"]["mean"] > 0
    assert found["samples"] == []


def test_a_run_with_tools_is_evaluated_with_them(project, tmp_path):
    """A patch does not say which code is run."""
    model = save_tiny(tmp_path / "chatml", context=1024)
    tokenizer = tiny_tokenizer().__class__.from_pretrained(model)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(model)
    Path("tool.py").write_text('def now() -> str:\n    """The time."""\n    return "noon"\n')
    row = json.dumps({"prompt": [{"role": "user", "content": "When?"}]}) + "\n"
    Path("chat.jsonl").write_text(row * 3)
    flags = ["--model_name_or_path", str(model), "--dataset_name", "chat.jsonl", "--tools", "tool.py:now"]
    assert main(["train", "--config", "run.yaml", *flags, "--max_steps", "1"]) == 0
    assert "now" in own_settings("out", {})["tools"][0]
    assert "tools" not in own_settings("out", {"task": "conciseness"})
    assert main(["export", "out", "--patch", "p.seedtune"]) == 0
    assert "tools" not in own_settings("p.seedtune", {})
    assert own_settings("p.seedtune", {})["dataset_name"] == "chat.jsonl"
    assert "dataset_name" not in own_settings("p.seedtune", {"task": "conciseness"})
    assert main(["eval", "out", "--samples", "0", "--json", "result.json"]) == 0
    rows = json.loads(Path("result.json").read_text())["model"]["completions"]
    assert [row["messages"][0]["role"] for row in rows] == ["assistant"] * 3


def test_a_base_model_that_moved_is_named(project, tiny_folder, capsys):
    shutil.copytree(tiny_folder, "base")
    assert main(["train", "--config", "run.yaml", "--model_name_or_path", "base"]) == 0
    assert main(["export", "out", "--patch", "p.seedtune"]) == 0
    Path("base").rename("moved")
    functions = ["--reward_funcs", "reward.py:short"]
    for command in (["eval", "p.seedtune", "--samples", "0", *functions], ["generate", "p.seedtune", "hello"]):
        assert main(command) == 1
        assert main([*command, "--base", "moved"]) == 0
    save_tiny(Path("base"), seed=1)
    capsys.readouterr()
    assert main(["eval", "out", "--samples", "0"]) == 1
    assert "is not the base model of out" in capsys.readouterr().err


def test_what_an_evaluation_leaves_out_is_said(project, tiny_folder, capsys):
    command = ["eval", str(tiny_folder), "--dataset_name", "data.jsonl", "--reward_funcs", "reward.py:short"]
    assert main([*command, "--samples", "2", "--k", "1", "50", "--top_k", "5", "--max_completion_length", "4"]) == 0
    out = capsys.readouterr().out
    assert "pass@50 needs at least 50 samples" in out
    assert "there is no KL" in out
    assert main([*command, "--temperature", "0", "--max_completion_length", "4"]) == 0
    assert "nothing is sampled" in capsys.readouterr().out


def test_a_file_to_evaluate_on(project):
    Path("test.jsonl").write_text('{"prompt": "held out"}\n')
    assert main(["train", "--config", "run.yaml", "--dataset_test_split", "test.jsonl", "--max_steps", "1"]) == 0
    assert [r["prompt"] for r in read_lines(Path("out/completions/eval-0.jsonl"))] == ["held out"]


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--sgma", "1"], 2, "unknown setting 'sgma'. Did you mean 'sigma'?"),
        (["--beta", "0.04"], 2, "'beta' is no setting here"),
        (["--num-generations=8"], 2, "at temperature 0 a member completes a prompt the same"),
        (["--sigma", "0"], 2, "sigma must be greater than 0"),
        (["--population_size", "1"], 2, "population_size must be at least 2"),
        (["--population_size", "two"], 2, "population_size must be a whole number, got 'two'"),
        (["--population_size", "3", "--antithetic"], 2, "pairs"),
        (["--antithetic", "maybe"], 2, "antithetic must be true or false"),
        (["--fitness_shaping", "zcore"], 2, "Did you mean 'zscore'?"),
        (["--stop_at", "reward is good"], 2, "not of the form"),
        (["--task", "concisenes"], 2, "no task 'concisenes'"),
        (["--scope", "nothing_like_this"], 2, "matches none"),
        (["--model_name_or_path", "./nowhere"], 1, "there is no model folder"),
        (["--model_name_or_path", "org/none-such"], 1, "cannot find model"),
        (["--dataset_name", "nowhere.jsonl"], 1, "there is no file"),
        (["--reward_funcs", "reward.py:long"], 1, "has no function 'long'"),
        (["--max_completion_length", "300"], 1, "more than the model's context of 256"),
        (["--resume"], 1, "holds no run to resume"),
        (["--reward_weights", "nan"], 2, "reward_weights must be a list of numbers"),
        (["--chat_template_kwargs", "[1"], 2, "is not YAML"),
        (["--max_train_samples", "-1"], 2, "max_train_samples must be at least 1"),
        (["--dataset_test_split", "test"], 1, "a file has no split 'test'"),
        (["--reward_funcs", "reward.py"], 1, "add the function: reward.py:function"),
        (["--config", "nowhere.yaml"], 2, "there is no configuration file"),
        (["surplus"], 2, "unexpected argument"),
    ],
)
def test_each_mistake_gets_one_clear_message(project, capsys, flags, code, says):
    assert main(["train", *(["--config", "run.yaml"] if "--config" not in flags else []), *flags]) == code
    error = capsys.readouterr().err
    assert error.startswith("seedtune: error: ")
    assert says in error
    assert "Traceback" not in error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('no')", "raised ValueError: no"),
        ("import time; time.sleep(60)", "did not return within 2 seconds"),
        ("return [1.0]", "values for"),
        ("return [float('nan')] * len(completions)", "finite number"),
        ("return ['good'] * len(completions)", "finite number"),
    ],
)
def test_reward_functions_that_misbehave(project, capsys, body, says):
    Path("reward.py").write_text(f"def short(completions, **kwargs):\n    {body}\n")
    assert main(["train", "--config", "run.yaml", "--reward_timeout", "2"]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert Path("out/journal.jsonl").exists()


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "\x00"])
def test_a_configuration_that_is_no_mapping(project, capsys, text):
    Path("bad.yaml").write_text(text)
    assert main(["train", "--config", "bad.yaml"]) == 2
    assert "bad.yaml" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder(project, capsys):
    assert main(["train", "--config", "run.yaml"]) == 0
    assert main(["train", "--config", "run.yaml"]) == 1
    assert "holds another run" in capsys.readouterr().err


def test_no_prompt(project, capsys, monkeypatch, tiny_folder):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["generate", str(tiny_folder)]) == 1
    assert "there is no prompt" in capsys.readouterr().err


def test_help_names_every_key_once_and_fits(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for name in (f.name for f in dataclasses.fields(RunConfig)):
        assert text.count(f"--{name} ") == 1, name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipes_resolve(recipe):
    if recipe.stem.startswith("compare-"):
        assert len(comparison(yaml.safe_load(recipe.read_text())).cells) > 1
        return
    args = resolve(yaml.safe_load(recipe.read_text()), {})
    assert args.task or args.dataset_name


def test_the_papers_settings_are_the_defaults():
    args = RunConfig()
    assert (args.population_size, args.sigma, args.alpha, args.temperature) == (30, 0.001, 0.0005, 0)
    assert (args.fitness_shaping, args.antithetic, args.scope, args.optimizer) == ("zscore", False, "all", "sgd")
    assert args.prompts_per_step is None


def test_the_panel_fits_a_hundred_columns_and_shows_what_matters():
    from seedtune.report.progress import Panel

    def drawn(panel):
        plain = Console(file=io.StringIO(), width=100)
        plain.print(panel._draw())
        return plain.file.getvalue()

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=40)
    panel = Panel(console)
    panel.begin([("model", "tiny"), ("reward", "short")], 0, 10)
    panel.evaluated(0, {"eval/reward": -100.0, "eval/correct": 0.5})
    assert "was" not in drawn(panel)
    panel.rows(1, 4, 20)
    metrics = {"reward": -90.0, "reward_std": 5.0, "completions/mean_length": 12.0, "tokens_per_second": 50.0}
    panel.iteration(1, metrics, {"prompt": "What is [bold]this[/bold]?", "completion": "It is\na long answer " * 30})
    panel.evaluated(1, {"eval/reward": -50.0, "eval/correct": 0.75})
    assert "2/10" in drawn(panel)
    panel.stop()
    assert "1/10" in drawn(panel)  # the run ended after the first
    text = out.getvalue()
    for expected in ("1/10", "-90.0 ± 5.00", "-50.0", "was -100", "correct 0.750", "50 tokens/s", "[bold]this[/bold]"):
        assert expected in text, expected
    import re

    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert max(len(line) for line in plain.splitlines()) <= 100


def test_a_log_ends_with_what_the_replicas_did():
    from seedtune.report.progress import Lines
    from seedtune.report.summary import Summary

    out = io.StringIO()
    lines = Lines(Console(file=out, width=200))
    lines.begin([], 0, 2)
    metrics = {"reward": -90.0, "reward_std": 5.0, "completions/mean_length": 12.0, "tokens_per_second": 50.0}
    fleet = ("replicas", "lost", "utilization", "slowest", "fastest", "bytes_sent")
    for step, values in ((1, (3, 0, 0.9, 105, 200, 2600)), (2, (2, 1, 0.8, 120, 240, 2500))):
        told = {f"fleet/{name}": float(value) for name, value in zip(fleet, values, strict=True)}
        lines.iteration(step, {**metrics, **told}, {})
    lines.finish(Summary("Done.", [], [], {}, {}, True, "out", None, []))
    ended = "Replicas: 2 to 3, 1 lost, 85% busy, 105 to 240 tokens/s each, at most 2.6 kB sent to one in an iteration\n"
    assert f"{ended}Output: out\n" in out.getvalue()


def test_the_console_script_is_installed():
    done = subprocess.run([sys.executable, "-m", "seedtune.cli.main", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("seedtune ")


def test_help_does_not_load_torch():
    code = "import sys; from seedtune.cli import main; main.main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
