"""A comparison: its cells, each in a process of its own, their results; and the claims, from numbers."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml

from comparisons import cell, compared
from seedtune.cli.main import main
from seedtune.compare import rl
from seedtune.compare.comparison import comparison
from seedtune.compare.context import MethodContext
from seedtune.compare.statistics import lines, sensitivity
from seedtune.errors import ConfigError, SeedtuneError
from tiny import save_tiny, tiny_tokenizer
from warm import warm_cells

TASK = {"task": "conciseness"}
OWN = '''
from transformers import AutoModelForCausalLM, AutoTokenizer

def train(context):
    """Changes nothing, and generates half of what it may."""
    model = AutoModelForCausalLM.from_pretrained(context.model)
    tokenizer = AutoTokenizer.from_pretrained(context.model)
    context.start()
    def save(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    assert context.settings["factor"] == 2 and not context.due(1)
    assert len(context.reward_funcs[0](completions=["a", "bc"])) == 2
    context.checkpoint(context.num_completions // 2, 100, save)

def breaks(context):
    raise ArithmeticError("seven is not even")
'''


def test_a_sweep_is_named_by_what_differs_and_seeds_go_first():
    methods = {"es": [{"sigma": 0.1, "rank": 1}, {"sigma": 0.2, "rank": 1}], "grpo": {"learning_rate": 1e-5}}
    plan = comparison({**TASK, "seeds": [3, 4], "methods": methods})
    assert [(c.label, c.seed) for c in plan.cells] == [
        ("es sigma=0.1", 3), ("es sigma=0.2", 3), ("grpo", 3), ("es sigma=0.1", 4), ("es sigma=0.2", 4), ("grpo", 4),
    ]  # fmt: skip
    assert plan.cells[0].folder == "es-sigma-0.1-seed3"
    assert plan.gold_metrics == ("correct", "answered")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methods": {"gprо": {}}}, "no method"),
        ({"methods": {"grp": {}}}, "'grpo'"),
        ({"methods": {"es": [{}, {}]}}, "twice"),
        ({"methods": ["es"]}, "must map"),
        ({"methods": {"es": {"sigmma": 1}}}, "sigmma"),
        ({"completions": 0}, "completions"),
        ({"generations": 0}, "completions"),
        ({"samples": "four"}, "samples"),
        ({"task": "concise"}, "concise"),
        ({"learning_rte": 1}, "learning_rte"),
        ({"seeds": "1"}, "seeds"),
        ({"reward_funcs": ["majority"]}, "grpo does not give reward function 'majority' what it requires: group"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_before_anything_runs(values, said):
    with pytest.raises(ConfigError, match=said):
        comparison({**TASK, **values})


def context(folder, **options):
    return MethodContext(
        "model", [], [], 8, num_completions=100, evaluations=4, seed=1, settings={}, folder=folder, **options
    )


def test_checkpoints_are_due_evenly_and_the_budget_holds(tmp_path):
    it = context(tmp_path)
    it.start()
    due = [n for n in range(0, 101, 10) if it.due(n) and (it.checkpoint(n, n, Path.touch) or True)]
    assert due == [30, 50, 80, 100]
    kept = [json.loads(line) for line in (tmp_path / "checkpoints.jsonl").read_text().splitlines()]
    assert [line["num_completions"] for line in kept] == due
    assert all((tmp_path / line["model"]).is_dir() for line in kept)
    with pytest.raises(SeedtuneError, match="budget is 100"):
        it.checkpoint(101, 1, Path.touch)
    with pytest.raises(SeedtuneError, match="start"):
        context(tmp_path).checkpoint(1, 1, Path.touch)


def test_the_claims_are_means_over_seeds():
    it = compared(
        cell("es", 1, (100, -50, 0.1, 0.5), (200, -20, 0.2, 0.5)),
        cell("es", 2, (100, -30, 0.1, 0.4), (200, -10, 0.4, 0.7)),
        cell("grpo lr=1", 1, (200, -40, 0.3, 0.9), megabytes=300.0),
        cell("grpo lr=2", 1, (200, -60, 0.3, 0.9)),
    )
    es, first, _ = lines(it)
    assert (es.reward, es.kl, es.gold) == pytest.approx((-15, 0.3, 0.6))
    assert es.spread == pytest.approx(50**0.5)
    assert es.to_target == (200, 100)
    assert (es.kl_at_target, es.gold_at_target) == pytest.approx((0.15, 0.45))
    assert (es.num_completions, es.tokens, es.seconds, es.megabytes) == (200, 2000, 100, 100)
    assert first.spread is None
    assert first.to_target == (None,)
    assert first.kl_at_target is None
    assert sensitivity(lines(it)) == {"grpo": (-60, -40)}


def test_missing_cells_stay_missing():
    it = compared(
        cell("es", 1, (100, -50, 0.1, 0.5)), cell("es", 2, error="no memory"), planned=["es-seed1", "es-seed2"]
    )
    (es,) = lines(it)
    assert (es.num_done, es.num_planned, es.reward, es.spread) == (1, 2, -50, None)


@pytest.fixture(scope="module")
def warm():
    """Cells are forked from a process that has imported what they need."""
    with warm_cells():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder, warm):
    """ES, GRPO, a method of one's own and one that breaks, on a tiny model, by the command."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "own.py").write_text(OWN)
    (folder / "reward.py").write_text(
        "def short(completions, **_):\n    return [-float(len(c)) for c in completions]\n"
    )
    (folder / "data.jsonl").write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(4)))
    settings = {
        "model_name_or_path": str(tiny_folder), "dataset_name": str(folder / "data.jsonl"), "device": "cpu",
        "reward_funcs": f"{folder / 'reward.py'}:short", "max_completion_length": 8, "output_dir": str(folder / "out"),
        "dtype": "float32", "completions": 16, "evaluations": 2, "seeds": [1], "samples": 2, "target": -1000,
        "methods": {
            "es": {"population_size": 4, "prompts_per_step": 2, "sigma": 0.01},
            "grpo": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4},
            "own": {"function": f"{folder / 'own.py'}:train", "factor": 2},
            "broken": {"function": f"{folder / 'own.py'}:breaks"},
        },
    }  # fmt: skip
    (folder / "compare.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    with redirect_stdout(StringIO()) as said, redirect_stderr(said):
        code = main(["compare", "--config", str(folder / "compare.yaml")])
    return folder, code, said.getvalue()


def results(folder):
    cells = json.loads((folder / "out" / "comparison.json").read_text())["cells"]
    return {c["label"]: c for c in cells}


def test_every_cell_is_trained_and_measured(finished):
    folder, _, said = finished
    cells = results(folder)
    assert list(cells) == ["base", "es", "grpo", "own", "broken"], said
    for label, counts in (("es", [8, 16]), ("grpo", [8, 16]), ("own", [8])):
        points = cells[label]["result"]["points"]
        assert [p["num_completions"] for p in points] == counts
        assert all(p["metrics"]["reward"]["mean"] < 0 for p in points)
        assert cells[label]["result"]["peak_megabytes"] > 50
    assert cells["own"]["result"]["points"][0]["metrics"]["kl"]["mean"] == 0  # it changed nothing
    assert cells["es"]["result"]["points"][1]["metrics"]["kl"]["mean"] > 0
    assert cells["grpo"]["result"]["points"][0]["tokens"] > 0
    assert [p.name for p in (folder / "out" / "es-seed1").glob("at-*")] == ["at-16"]  # the last model is kept


def test_a_cell_that_breaks_is_shown_and_the_others_go_on(finished):
    folder, code, said = finished
    assert "seven is not even" in results(folder)["broken"]["error"]
    assert "broken-seed1 failed" in said
    assert code == 1
    assert "Traceback" not in said


def test_what_is_done_is_not_done_again(finished, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    folder, *_ = finished
    before = {f: f.stat().st_mtime_ns for f in (folder / "out").glob("*/result.json")}
    assert len(before) == 4
    values = yaml.safe_load((folder / "compare.yaml").read_text())
    del values["methods"]["broken"]
    (folder / "less.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert main(["compare", "--config", str(folder / "less.yaml")]) == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert "completions to -1000" in " ".join(capsys.readouterr().out.split())


TOOLS = '''
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b

class Counter:
    def reset(self, start=0, **_):
        self.count = start
        return f" from {start}"

    def count_on(self) -> str:
        """Count on."""
        self.count += 1
        return str(self.count)

    def get_reward(self) -> float:
        return float(self.count)

def even(environments, **_):
    return [float(it.count % 2 == 0) for it in environments]

def turns(completions, **_):
    return [float(len(messages)) for messages in completions]

def train(context):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    assert [tool.__name__ for tool in context.tools] == ["add"]
    assert context.environment_factory().count_on.__doc__ == "Count on."
    context.start()
    parts = [kind.from_pretrained(context.model) for kind in (AutoModelForCausalLM, AutoTokenizer)]
    context.checkpoint(16, 100, lambda folder: [part.save_pretrained(folder) for part in parts])
'''


def test_conversations_are_compared(tmp_path, monkeypatch, capsys, warm):
    """With tools and an environment that gives the reward; all gold metrics are shown."""
    templates = pytest.importorskip("trl.chat_template_utils")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    model, tokenizer = save_tiny(tmp_path / "model", context=4096), tiny_tokenizer()
    tokenizer.chat_template = templates.qwen2_5_chat_template
    tokenizer.save_pretrained(model)
    (tmp_path / "tools.py").write_text(TOOLS)
    rows = [{"prompt": [{"role": "user", "content": "count"}], "start": start} for start in (4, 5, 6, 7)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model_name_or_path": str(model), "dataset_name": str(tmp_path / "data.jsonl"), "device": "cpu",
        "tools": [f"{tmp_path / 'tools.py'}:add"], "environment_factory": f"{tmp_path / 'tools.py'}:Counter",
        "eval_funcs": [f"{tmp_path / 'tools.py'}:even", f"{tmp_path / 'tools.py'}:turns"], "dtype": "float32",
        "max_completion_length": 8, "max_tool_calling_iterations": 1, "output_dir": str(tmp_path / "out"),
        "completions": 16, "evaluations": 1, "seeds": [1], "samples": 2, "reward_workers": 0,
        "methods": {
            "es": {"population_size": 4, "sigma": 0.01},
            "grpo": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4},
            "own": {"function": f"{tmp_path / 'tools.py'}:train"},
        },
    }  # fmt: skip
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert main(["compare", "--config", str(tmp_path / "compare.yaml")]) == 0, [
        file.read_text() for file in (tmp_path / "out").glob("*/log.txt")
    ]
    said = " ".join(capsys.readouterr().out.split())
    assert "Gold metrics at the end, with 95 % intervals over prompts even turns base 0.5" in said
    for cell_ in results(tmp_path).values():
        metrics = cell_["result"]["points"][-1]["metrics"]
        assert (metrics["reward"]["mean"], metrics["even"]["mean"], metrics["turns"]["mean"]) == (5.5, 0.5, 1)
        assert all(row["messages"] for row in cell_["result"]["points"][-1]["completions"])
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "<h2>Gold metrics</h2>" in (tmp_path / "out" / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        ("rloo", {}, "TRL's rloo calls no tools"),
        ("grpo", {"reward_funcs": ["majority"]}, "does not give reward function 'majority' what it"),
        ("dr_grpo", {"reward_weights": [2, 0.5]}, r"the weight 1, not 0\.5"),
    ],
)
def test_what_trls_trainers_lack_is_said_before_anything_runs(tmp_path, method, more, said):
    (tmp_path / "tools.py").write_text(TOOLS)
    settings = {"tools": [f"{tmp_path / 'tools.py'}:add"], "environment_factory": f"{tmp_path / 'tools.py'}:Counter"}
    with pytest.raises(ConfigError, match=said):
        comparison({**TASK, **settings, **more, "methods": {method: {}}})
    if "reward_weights" in more:
        assert comparison({**TASK, **settings, **more, "methods": {"es": {}}}).cells
        assert comparison({**TASK, **settings, "reward_weights": [2, 1], "methods": {method: {}}}).cells


@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")  # TRL 1.16 with transformers 5.23
def test_completions_of_trls_trainers_end_with_stop_strings(tmp_path, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    seen = []

    def reward(completions, **_):
        seen.extend(completions)
        return [float(len(text)) for text in completions]

    model = save_tiny(tmp_path / "model", context=256)
    size = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "num_generations": 4}
    stops = list("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # this model writes at random
    context = MethodContext(
        model=str(model), train_dataset=[{"prompt": "say"}] * 4, reward_funcs=[reward], max_completion_length=32,
        num_completions=16, evaluations=1, seed=1, settings=size, folder=tmp_path, stop_strings=stops,
    )  # fmt: skip
    rl.grpo(context)
    assert len(seen) == 16
    assert sum(text[-1:] in stops for text in seen) > 8
    assert not any(stop in text[:-1] for text in seen for stop in stops)
    context.stop_strings = ["==", "\n"]
    with pytest.raises(ConfigError, match="'==' is 2 of"):
        rl.grpo(context)


def test_every_gold_metric_has_an_interval_over_prompts():
    first, second = cell("es", 1, (100, -50, 0.1, 0.5)), cell("es", 2, (100, -50, 0.1, 0.7))
    for it, (mean, half) in ((first, (2.0, 0.2)), (second, (4.0, 0.4))):
        it["result"]["points"][0]["metrics"]["turns"] = {"mean": mean, "ci95": half}
    (line,) = lines({**compared(first, second), "gold_metrics": ["right", "turns"]})
    assert line.gold == pytest.approx(0.6)
    (right, no_interval), (turns, half) = line.gold_metrics
    assert no_interval is None
    assert (right, turns, half) == pytest.approx((0.6, 3.0, 0.3))


def test_a_comparison_of_0_1_0_is_read_and_continued(finished, tmp_path, capsys):
    """Its files and its settings say `generations` and `truth`."""
    folder, *_ = finished
    shutil.copytree(folder / "out", tmp_path / "out")
    files = [*(tmp_path / "out").glob("*/*.json*"), tmp_path / "out" / "comparison.json"]
    for file in files:
        text = file.read_text().replace('"num_completions"', '"generations"').replace('"gold_metric"', '"truth"')
        file.write_text(text)
        if file.name == "comparison.json":
            it = json.loads(text)
            del it["gold_metrics"]
            text = json.dumps(it)
            file.write_text(text)
    assert '"truth": null' in (tmp_path / "out" / "comparison.json").read_text()
    before = {f: f.stat().st_mtime_ns for f in files if f.name == "result.json"}
    assert main(["report", str(tmp_path / "out")]) == 0
    settings = yaml.safe_load((folder / "compare.yaml").read_text())
    settings["generations"] = settings.pop("completions")
    del settings["methods"]["broken"]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    command = ["compare", "--config", str(tmp_path / "old.yaml"), "--output_dir", str(tmp_path / "out")]
    assert main(command) == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before
    now = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (now["num_completions"], now["gold_metric"], now["gold_metrics"]) == (16, None, [])
    assert now["cells"][1]["result"]["points"][0]["num_completions"] == 8


def test_a_method_of_0_1_0_reads_its_budget_as_generations(tmp_path):
    with pytest.warns(DeprecationWarning, match="num_completions"):
        assert context(tmp_path).generations == 100


@pytest.mark.parametrize("flag", ["--completions", "--generations"])  # the second: its name in 0.1.0
def test_a_folder_of_another_comparison_is_left_alone(finished, tmp_path, capsys, flag):
    folder, *_ = finished
    shutil.copytree(folder / "out", tmp_path / "out")
    command = ["compare", "--config", str(folder / "compare.yaml"), "--output_dir", str(tmp_path / "out")]
    assert main([*command, flag, "24"]) == 1
    assert "another comparison" in capsys.readouterr().err
    assert (tmp_path / "out" / "es-seed1" / "result.json").exists()
