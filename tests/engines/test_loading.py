"""Models that cannot be loaded as they are: what is wrong is said, and nothing is made up."""

from __future__ import annotations

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaForSequenceClassification,
    LlavaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from runs import trainer
from seedtune.engines import hub, loading
from seedtune.engines.specs import ModelSpec
from seedtune.errors import ModelError
from tiny import tiny_llama, tiny_tokenizer


class ConnectError(Exception):
    """As httpx calls it."""


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_a_hub_that_cannot_be_reached_is_asked_once(name, monkeypatch, caplog):
    """And not five times for each file; afterwards everything is as before."""
    asked = []
    hub._warn.cache_clear()

    def head(address, timeout):
        asked.append(address)
        raise ConnectError("no network")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", lambda: SimpleNamespace(head=head))
    with hub.cache_where_unreachable(True):
        assert hub.constants.HF_HUB_OFFLINE, "so that huggingface_hub itself asks nothing"
    asked.clear()
    with pytest.raises(ModelError, match="cannot find model"):
        load(name)
    assert asked == [hub.constants.ENDPOINT]
    assert "cannot be reached, so only models in the local cache are found" in caplog.text
    assert hub.constants.HF_HUB_OFFLINE is False


def test_for_a_folder_the_hub_is_not_asked(folder, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("it was asked"))
    load(folder)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def changed(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def load(name):
    return loading.load(ModelSpec(str(name)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_hidden_layers": 3}, r"lacks 9 of its weights \(model\.layers\.2\..*\.\.\.\), so they would be random"),
        ({"tie_word_embeddings": False, "vocab_size": 261, "attention_bias": True}, "lacks 8 of its weights"),
        ({"intermediate_size": 128}, r"6 weights have other shapes .*down_proj\.weight: \(32, 64\), not \(32, 128\)"),
        ({"model_type": "t5"}, r"is no causal language model \(T5Config\)"),
    ],
)
def test_a_configuration_of_another_model(folder, settings, says):
    changed(folder, **settings)
    with pytest.raises(ModelError, match=says):
        load(folder)


def test_a_classifier_has_no_head_that_writes(folder):
    with torch.random.fork_rng():
        LlamaForSequenceClassification(tiny_llama().config).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"lacks 1 of its weights \(lm_head\.weight\).*a classifier has no head"):
        load(folder)


def test_weights_that_are_tied_or_not_used_are_no_fault(tmp_path):
    tiny_llama(tied=True, layers=2).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    changed(tmp_path, num_hidden_layers=1)
    load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:5000]), "missing, cut off or damaged"),
        (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "Git LFS"),
        (lambda f: f.rename(f.with_name("pytorch_model.bin")), "never loads pickles"),
    ],
)
def test_damaged_weights(folder, damage, says):
    damage(folder / "model.safetensors")
    with pytest.raises(ModelError, match=says):
        load(folder)


def test_a_part_of_the_weights_that_is_missing(folder):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"fetch it again.*model-00001-of-00002"):
        load(folder)


def test_places_that_are_no_model(folder):
    several = folder / "several"
    for place in (several / "one", several / "two"):  # as PEFT saves adapters by name
        place.mkdir(parents=True)
        (place / "adapter_config.json").write_text("{}")
    for name, says in [
        (several, r"no config\.json: there are models within it, one, two: give one of those"),
        ("", "name is empty"),
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B/tree/main", "'Qwen/Qwen2.5-0.5B'"),
        (folder / "model.safetensors", "is a file: give the folder"),
        (folder.parent, r"no config\.json: there are models within it, model: give one of those"),
        (folder / "nothing", "there is no model folder"),
    ]:
        with pytest.raises(ModelError, match=says):
            load(name)


def test_the_tokenizer_may_be_elsewhere(folder, tmp_path):
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="give one to ESTrainer as processing_class"):
        load(folder)
    t = trainer(tmp_path, model=str(folder), processing_class=copy.deepcopy(tiny_tokenizer()))
    t.train()
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint-3").eos_token_id == 0


def test_objects_that_do_not_write(tmp_path):
    config = T5Config(vocab_size=261, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8, decoder_start_token_id=1)
    for model, says in [
        (tiny_llama().model, "LlamaModel is no causal language model, as it has no head"),
        (LlamaForSequenceClassification(tiny_llama().config), "has no head that writes text"),
        (T5ForConditionalGeneration(config), "reads with an encoder"),
    ]:
        with pytest.raises(ModelError, match=says):
            trainer(tmp_path, model=model)


def test_models_that_return_tuples_say_what_to_do(tmp_path, folder):
    """transformers fails with them by itself, in the depths."""
    changed(folder, return_dict=False)
    model = tiny_llama()
    model.config.return_dict = False
    says = r'return_dict is false .*Set "return_dict": true in config\.json, or model\.config\.return_dict = True'
    rows = [{"prompt": "a", "completion": "b"}]
    for given in (str(folder), model):
        with pytest.raises(ModelError, match=says):
            trainer(tmp_path, model=given)
        with pytest.raises(ModelError, match=says):
            trainer(tmp_path, rows, reward_funcs="log_likelihood", model=given)
    of_images = SimpleNamespace(config=LlavaConfig(text_config={"model_type": "llama", "return_dict": False}))
    with pytest.raises(ModelError, match=r"^text_config\.return_dict is false"):
        loading.check_returns(of_images)


def test_double_precision_and_autocast_say_what_to_do(tmp_path):
    for how in ({}, {"perturbation": "lowrank"}):
        with pytest.raises(ModelError, match=r"of float64, .*call model\.float\(\)"):
            trainer(tmp_path, model=tiny_llama().double(), **how)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ModelError, match=r"torch\.autocast is on"):
        trainer(tmp_path)


def test_a_model_without_a_generation_configuration_gets_one(tmp_path):
    model = tiny_llama()
    model.generation_config = None
    t = trainer(tmp_path, model=model)
    t.train()
    assert t.model.generation_config.eos_token_id == 0
