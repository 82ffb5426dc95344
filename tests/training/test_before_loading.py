"""What needs no weights is checked before they are read, and what takes a while is said."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from runs import ROWS, Notes, config, letters, trainer
from seedtune import ESTrainer
from seedtune.engines import loading
from seedtune.engines.specs import ModelSpec
from seedtune.errors import ConfigError, DataError, ModelError, RewardError, RunFolderError
from seedtune.journal.folder import RunFolder
from seedtune.report.progress import Lines, Progress
from tiny import save_tiny, tiny_llama, tiny_tokenizer

CHAT = [[{"role": "user", "content": "hi"}]]


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """A model's folder whose weights may not be read."""

    def read(*args, **kwargs):
        raise AssertionError("weights were read")

    folder = save_tiny(tmp_path / "model")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    return folder


def without_template(folder):
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("chat_template", None)
    file.write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def made(tmp_path, model, rows=ROWS, reward_funcs=letters, processing_class=None, **options):
    return ESTrainer(model=str(model), reward_funcs=reward_funcs, args=config(tmp_path, **options), train_dataset=rows,
                     processing_class=processing_class, progress=Progress())  # fmt: skip


@pytest.mark.parametrize("place", ["train", "eval"])
def test_a_chat_prompt_for_a_tokenizer_without_a_template(tmp_path, no_weights, place):
    without_template(no_weights)
    chat = [{"prompt": p, "target": "a"} for p in CHAT]
    with pytest.raises(DataError, match="no chat template"):
        ESTrainer(model=str(no_weights), reward_funcs=letters, args=config(tmp_path),
                  train_dataset=chat if place == "train" else ROWS, eval_dataset=chat, progress=Progress())  # fmt: skip


def test_a_prompt_that_is_too_long(tmp_path, no_weights):
    rows = [*ROWS, {"prompt": "x" * 300, "target": "a"}]
    with pytest.raises(DataError, match="prompt 5 has 300 tokens"):
        made(tmp_path, no_weights, rows)


def test_a_scope_that_matches_nothing(tmp_path, no_weights):
    with pytest.raises(ConfigError, match="matches none"):
        made(tmp_path, no_weights, scope="q_projj")


def test_a_reward_function_that_cannot_be_sent_to_a_process(tmp_path, no_weights):
    file = (tmp_path / "open").open("w")
    with file, pytest.raises(RewardError):
        made(tmp_path, no_weights, reward_funcs=lambda completions, **_: [len(file.name)] * len(completions),
             reward_workers=1)  # fmt: skip


def test_a_tokenizer_that_is_given_is_the_one_that_is_checked(tmp_path, no_weights):
    without_template(no_weights)
    rows = [{"prompt": p, "target": "a"} for p in CHAT]
    with pytest.raises(ModelError, match="weights were read"):  # nothing was found to be wrong before
        made(tmp_path, no_weights, rows, processing_class=tiny_tokenizer())


def test_what_cannot_be_outlined_is_left_to_loading(tmp_path):
    assert loading.outline(ModelSpec(str(tmp_path / "nowhere"))) is None
    (tmp_path / "adapter_config.json").write_text("{}")
    assert loading.outline(ModelSpec(str(tmp_path))) is None


def test_an_outline_has_the_parameters_and_no_weights(tmp_path):
    skeleton, tokenizer = loading.outline(ModelSpec(str(save_tiny(tmp_path / "model"))))
    assert [(n, p.shape) for n, p in skeleton.named_parameters()] == [
        (n, p.shape) for n, p in tiny_llama().named_parameters()
    ]
    assert all(p.is_meta for p in skeleton.parameters())
    assert len(tokenizer) == len(tiny_tokenizer())


def test_prompts_are_tokenized_once(tmp_path, monkeypatch):
    seen = []
    from seedtune.engines.tokenization import Texts

    encode = Texts.encode
    monkeypatch.setattr(
        Texts, "encode", lambda self, prompts, *a, **k: seen.extend(prompts) or encode(self, prompts, *a, **k)
    )
    made(tmp_path, save_tiny(tmp_path / "model"))
    assert len(seen) == 2 * len(ROWS)  # for training, and for evaluation


def test_a_folder_that_is_in_use_is_refused_before_anything_is_loaded(tmp_path):
    other, mine = RunFolder(tmp_path), RunFolder(tmp_path)
    other.claim(resume=False)
    with pytest.raises(RunFolderError, match="is in use by process"):
        mine.check(resume=False)
    other.check(resume=False)
    other.release()
    mine.check(resume=False)


def test_what_takes_a_while_is_said(tmp_path, capsys):
    model = save_tiny(tmp_path / "model")
    lines = Lines()
    t = ESTrainer(model=str(model), reward_funcs=letters, train_dataset=ROWS, progress=lines,
                  args=config(tmp_path, sigma="auto", learning_rate="auto", max_steps=1, guard=True))  # fmt: skip
    t.train()
    said = capsys.readouterr().out
    order = [
        f"Loading {model}",
        "measuring how far noise moves",
        "sigma 0.0003: members are",
        "Measuring how far noise",
        "iteration 1/1",
    ]
    assert [said.count(text) for text in order[:2]] == [1, 1]
    places = [said.index(text) for text in order]
    assert places == sorted(places)


def test_it_is_said_once_where_messages_are_shown(tmp_path):
    class Both(Notes):
        def stage(self, text):
            self.texts.append(text)

    both = Both()
    trainer(tmp_path, model=str(save_tiny(tmp_path / "model")), progress=both)
    both.stop()
    assert sum(text.startswith("Loading") for text in both.texts) == 1


_OTHERS = ["training.factory", "training.replay", "cli.model_ref", "evaluation.evaluate"]


@pytest.fixture(scope="module")
def imported():
    """Of what only training needs, what is there after each of the modules was imported, one after the other."""
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"for module in {_OTHERS}:\n"
        "    import_module('seedtune.' + module)\n"
        "    print(*sorted({'bitsandbytes', 'peft', 'transformers.trainer_utils'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(_OTHERS, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("module", _OTHERS)
def test_what_only_training_needs_is_not_imported_by_other_commands(module, imported):
    """transformers' trainer imports PEFT, where it is installed, and that bitsandbytes, which prints a line."""
    assert imported[module] == ""
