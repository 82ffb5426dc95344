"""A run is pushed to the Hub: the real huggingface_hub, against a stand-in server on this machine."""

from __future__ import annotations

import json

import pytest
import yaml
from transformers import AutoModelForCausalLM

from hub_server import hub_server
from runs import Notes, config, plain, trained, trainer
from seedtune import ESConfig
from seedtune.cli.main import main
from seedtune.config.yaml_file import to_yaml
from seedtune.errors import HubError
from seedtune.training import factory
from tiny import save_tiny

#: huggingface_hub hands httpx a file in a way that httpx has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")

MODEL = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
RUN = {"journal.jsonl", "metrics.jsonl", "config.resolved.yaml", "environment.json"}


@pytest.fixture
def hub(monkeypatch):
    with hub_server(monkeypatch) as server:
        yield server


def push(tmp_path, **options):
    return trained(tmp_path, reward_funcs=plain, push_to_hub=True, save_steps=1, max_steps=2, **options)


def folders(files):
    return {name.split("/")[0] for name in files if "/" in name}


def tokens(hub):
    return {token for _, path, token in hub.requests if path.startswith(("/api/repos/", "/api/models/"))}


def test_a_run_is_pushed_whenever_a_checkpoint_is_saved_and_at_its_end(tmp_path, hub):
    run = push(tmp_path, hub_model_id="org/model", hub_private_repo=True, hub_token="hf_own")
    assert hub.repos["org/model"]["visibility"] == "private"
    assert tokens(hub) == {"Bearer hf_own"}
    in_progress = [f"Training in progress: checkpoint-{n}" for n in (1, 2)]
    assert hub.commits == [*in_progress, "End of training, after iteration 2"]
    files = hub.files["org/model", "main"]
    assert set(files) >= MODEL
    assert not folders(files)
    assert "state.safetensors" not in files
    assert files["model.safetensors"] == (run / "checkpoint-2" / "model.safetensors").read_bytes()
    assert 'from_pretrained("org/model")' in files["README.md"].decode()
    AutoModelForCausalLM.from_pretrained(hub.clone("org/model", tmp_path / "clone"))


def test_a_token_is_written_nowhere(tmp_path, hub):
    run = push(tmp_path, hub_strategy="all_checkpoints", hub_token="hf_secret")
    written = [path for path in run.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert not written
    assert not [name for name, content in hub.files["me/run", "main"].items() if b"hf_secret" in content]
    args = ESConfig(hub_token="hf_secret")
    assert args.to_dict()["hub_token"] == "<HUB_TOKEN>"
    assert "hf_secret" not in repr(args) + args.to_json_string() + str(args.to_sanitized_dict()) + to_yaml(args)


@pytest.mark.parametrize("options", [{"load_best_model_at_end": True}, {"save_strategy": "best"}], ids=str)
def test_what_is_pushed_last_is_what_the_run_hands_back(tmp_path, hub, options):
    run = push(tmp_path, hub_strategy="end", eval_steps=1, **options)
    best = run / "checkpoint-best"
    handed = best if best.is_dir() and "load_best_model_at_end" in options else run / "checkpoint-2"
    assert len(hub.commits) == 1
    assert hub.files["me/run", "main"]["model.safetensors"] == (handed / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("strategy", "kept"), [("checkpoint", {"checkpoint-2"}), ("all_checkpoints", {"checkpoint-1", "checkpoint-2"})]
)
def test_a_clone_is_a_folder_in_which_the_run_resumes(tmp_path, hub, strategy, kept):
    run = push(tmp_path, hub_strategy=strategy)
    files = hub.files["me/run", "main"]
    assert folders(files) == kept
    assert set(files) >= MODEL | RUN
    clone = hub.clone("me/run", tmp_path / "clone")
    assert (clone / "checkpoint-2" / "state.safetensors").is_file()
    assert (clone / "journal.jsonl").read_bytes() == (run / "journal.jsonl").read_bytes()
    again = {"model": str(tmp_path / "base"), "reward_funcs": plain, "max_steps": 3, "save_steps": 1}
    trainer(tmp_path, output_dir=str(clone), **again).train(resume_from_checkpoint=True)
    assert len((clone / "journal.jsonl").read_text().splitlines()) == 4


def test_a_branch(tmp_path, hub):
    push(tmp_path, hub_strategy="end", hub_revision="es")
    assert ("me/run", "es") in hub.files
    assert not hub.files["me/run", "main"]


def test_a_repository_that_cannot_be_made_is_told_before_the_first_iteration(tmp_path, hub):
    hub.fails = ("repos/create", 403)
    with pytest.raises(HubError, match=r"'me2/run' cannot be used: .*hf auth login.*hf upload me2/run"):
        push(tmp_path, hub_model_id="me2/run")
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_without_a_token(tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match="hf auth login"):
        push(tmp_path)


def test_a_push_that_fails_costs_nothing_of_the_run(tmp_path, hub):
    hub.fails = ("/commit/", 400)
    notes = Notes()
    with pytest.raises(HubError, match="did not take"):
        push(tmp_path, progress=notes)
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").is_file()
    assert sum("Training goes on" in text for text in notes.texts) == 2


def test_the_trainers_own_method(tmp_path, hub):
    it = trainer(tmp_path, max_steps=1, hub_model_id="later")
    it.train()
    url = it.push_to_hub(commit_message="by hand", token="hf_other", revision="r")
    assert url == f"{hub.url}/me/later/commit/1"
    assert hub.commits == ["by hand"]
    assert set(hub.files["me/later", "r"]) >= MODEL
    assert tokens(hub) == {"Bearer hf_other"}


def test_the_command_line(tmp_path, hub, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "base")
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "say"}) + "\n")
    (tmp_path / "reward.py").write_text("def short(completions, **kwargs):\n    return [len(c) for c in completions]\n")
    settings = {
        "model_name_or_path": "base", "dataset_name": "data.jsonl", "reward_funcs": "reward.py:short", "max_steps": 1,
        "population_size": 4, "sigma": 0.01, "max_completion_length": 4, "dtype": "float32", "device": "cpu",
        "guard": False, "load_best_model_at_end": False, "push_to_hub": True, "hub_model_id": "cli",
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", "--config", "run.yaml", "--hub_strategy", "end"]) == 0
    assert set(hub.files["me/cli", "main"]) >= MODEL


def test_settings_that_do_nothing_are_noted(tmp_path):
    notes = Notes()
    factory.note_unused(config(tmp_path, hub_model_id="x", hub_strategy="end", log_unique_prompts=True))
    factory.note_unused(config(tmp_path, push_to_hub=True, hub_model_id="x", log_completions=True))
    notes.stop()
    assert notes.texts == [
        "hub_model_id, hub_strategy: ignored: only applies with push_to_hub: true.",
        "log_unique_prompts: ignored: only applies with log_completions: true.",
    ]


def test_one_row_per_prompt_is_logged(tmp_path):
    rows = {}
    for name, unique in (("all", False), ("some", True)):
        run = trained(tmp_path, name, max_steps=1, log_completions=True, log_unique_prompts=unique)
        rows[name] = [json.loads(line) for line in (run / "completions" / "train-1.jsonl").read_text().splitlines()]
    assert len(rows["all"]) == 16
    assert rows["some"] == rows["all"][:4]


def test_a_push_by_hand_names_a_dataset_and_tags(tmp_path, hub):
    t = trainer(tmp_path, reward_funcs=plain, max_steps=1, hub_model_id="org/model")
    t.train()
    t.push_to_hub("Mine", dataset_name="org/data", tags=["math", "seedtune"])
    assert hub.commits == ["Mine"]
    about = yaml.safe_load(hub.files["org/model", "main"]["README.md"].decode().split("---")[1])
    assert about["datasets"] == ["org/data"]
    assert about["tags"] == ["seedtune", "evolution-strategies", "math"]
