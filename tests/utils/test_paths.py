"""Whatever says which path it is counts as one, with `~` as the home folder, wherever a path is taken."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from runs import ROWS, config, letters, trainer
from seedtune import ESConfig, ESTrainer
from seedtune.cli.main import main
from seedtune.compare import page
from seedtune.config import RunConfig, yaml_file
from seedtune.data import load
from seedtune.engines import ModelSpec, loading
from seedtune.errors import ConfigError, RunFolderError
from seedtune.journal import Journal, RunFolder
from seedtune.report import history, run_page
from seedtune.report.progress import Progress
from seedtune.rewards.function import reward_functions
from seedtune.training import factory, replay
from seedtune.utils.paths import local_path
from tiny import save_tiny


class Place:
    """Not a `Path`, and not a text: what `os.fspath` takes."""

    def __init__(self, path):
        self.path = str(path)

    def __fspath__(self):
        return self.path


COMPARISON = Path(__file__).parents[1] / "data" / "v0.1.0" / "comparison.json"
KINDS = [Path, Place, str]
REWARD = "def short(completions, **kwargs):\n    return [-float(len(c)) for c in completions]\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, which is not where we stand."""
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_paths_are_expanded_once(home):
    (home / "~").mkdir()
    assert local_path("~/a") == home / "a"
    assert local_path(Path("~")) == home
    assert local_path(local_path("~/~")) == home / "~"
    assert local_path("~nobody-of-that-name/a") == Path("~nobody-of-that-name/a")
    assert local_path("a/~") == Path("a/~")
    assert ESConfig(output_dir="./~/a").output_dir == "./~/a"


@pytest.mark.parametrize("kind", KINDS)
def test_settings_take_any_path(home, kind):
    args = RunConfig(
        output_dir=kind("~/out"),
        model_name_or_path=kind("some/model"),
        dataset_name=kind("data.jsonl"),
        dataset_test_split=kind("~/test.jsonl"),
        reward_funcs=[kind("~/reward.py:short"), "correct"],
        eval_funcs=kind("reward.py:short"),
    )
    assert args.output_dir == str(home / "out")
    assert args.logging_dir == str(home / "out" / "logs")
    assert (args.model_name_or_path, args.dataset_name) == ("some/model", "data.jsonl")
    assert args.dataset_test_split == "~/test.jsonl"
    assert (args.reward_funcs, args.eval_funcs) == (["~/reward.py:short", "correct"], ["reward.py:short"])
    assert ESConfig(output_dir=args.output_dir) == ESConfig(output_dir=kind("~/out"))
    with pytest.raises(ConfigError, match="max_steps must be a whole number"):
        ESConfig(max_steps=Path("3"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_trainer_takes_any_path(home, kind):
    save_tiny(home / "base")
    (home / "reward.py").write_text(REWARD)

    def make(**options):
        return ESTrainer(
            kind("~/base"),
            kind("~/reward.py:short"),
            config(home, output_dir=kind("~/run"), **options),
            ROWS,
            progress=Progress(),
        )

    make(max_steps=1).train()
    with pytest.raises(RunFolderError, match="resume_from_checkpoint names ~/other"):
        make(max_steps=2).train(resume_from_checkpoint=kind("~/other"))
    make(max_steps=2).train(resume_from_checkpoint=kind("~/run"))
    done = make(max_steps=3)
    assert done.train(resume_from_checkpoint=kind("~/run/checkpoint-2")).global_step == 3
    done.save_model(kind("~/saved"))
    assert (home / "saved" / "model.safetensors").exists()
    done.engine.save(kind("~/saved-too"))
    assert (home / "saved-too" / "model.safetensors").exists()
    assert not os.listdir()  # nothing lies where we stand


@pytest.mark.parametrize("kind", KINDS)
def test_functions_take_any_path(home, kind):
    save_tiny(home / "base")
    trainer(home, model=str(home / "base"), max_steps=1, max_completion_length=4).train()
    assert RunFolder(kind("~/run")).has_journal
    assert len(Journal.read(kind("~/run"))[0].iterations) == 1
    assert len(Journal.read(kind("~/run/journal.jsonl"))[0].iterations) == 1
    assert replay.rebuild([replay.load(kind("~/run"))], kind("~/base")).digest()
    assert history.read(kind("~/run")).folder == home / "run"
    assert run_page.write(kind("~/run"), kind("~/page")).is_relative_to(home / "page")
    assert run_page.write(kind("~/run")).is_relative_to(home / "run")
    shutil.copy(COMPARISON, home / "comparison.json")
    assert page.write(kind("~")).is_relative_to(home)
    assert page.write(kind("~"), kind("~/page")).is_relative_to(home / "page")
    assert yaml_file.read(kind("~/run/config.resolved.yaml"))["output_dir"] == str(home / "run")
    assert loading.load(ModelSpec(kind("~/base")))[0].config.model_type == "llama"
    assert loading.load_tokenizer(kind("~/base"))
    assert loading.pretrained_name(kind("~/base")) == str(home / "base")
    assert "config.json" in loading.model_files(kind("~/base"))
    assert factory.inference_engine(kind("~/base"), ESConfig(dtype="float32", device="cpu")).digest()
    (home / "data.jsonl").write_text('{"prompt": "a"}\n')
    assert load(kind("~/data.jsonl")) == [{"prompt": "a"}]
    assert [r.function for r in reward_functions([letters])] == [letters]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_takes_any_path(home, kind, capsys):
    save_tiny(home / "base")
    (home / "reward.py").write_text(REWARD)
    (home / "data.jsonl").write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(4)))
    (home / "run.yaml").write_text(
        "model_name_or_path: ~/base\ndataset_name: ~/data.jsonl\ndataset_test_split: ~/data.jsonl\n"
        "reward_funcs: ~/reward.py:short\nmax_steps: 1\npopulation_size: 2\nmax_completion_length: 4\ndtype: float32\n"
        "device: cpu\nload_best_model_at_end: false\nguard: false\n"
    )
    run, flags = kind("~/run"), ["--dtype", "float32", "--device", "cpu", "--max_completion_length", "4"]
    for command in (
        ["train", "--config", kind("~/run.yaml"), "--output_dir", run],
        ["train", "--resume", "--output_dir", run, "--max_steps", "2"],
        ["generate", run, "a", *flags],
        ["generate", kind("~/base"), "a", *flags],
        ["eval", run, "--samples", "0", "--base", kind("~/base"), "--json", kind("~/eval.json"), *flags],
        ["report", run, "--out", kind("~/page")],
        ["export", run, "--patch", kind("~/a.seedtune")],
        ["inspect", kind("~/a.seedtune")],
        ["diff", run, kind("~/a.seedtune")],
        ["apply", kind("~/a.seedtune"), "--model", kind("~/base"), "--out", kind("~/applied")],
        ["replay", run, "--out", kind("~/replayed")],
    ):
        assert main(command) == 0, (command, capsys.readouterr())
        if command[0] == "inspect":
            assert "bytes as a patch; the weights" in capsys.readouterr().out.replace("(would be", "(")
    for name in ("eval.json", "page/index.html", "a.seedtune", "applied/config.json", "replayed/config.json"):
        assert (home / name).exists(), name
    assert not os.listdir()


def test_the_cache_may_be_in_the_home_folder(home, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", "~/cache")
    (home / "cache" / loading.EMBEDDED).mkdir(parents=True)
    assert loading.embedded_model() == home / "cache" / loading.EMBEDDED
