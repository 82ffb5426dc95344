"""What saving needs is checked before the first iteration; an error of the disk says what to do and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from runs import Notes, config, journal_of, trainer
from seedtune import ESTrainer
from seedtune.engines import loading
from seedtune.engines.specs import ModelSpec
from seedtune.errors import ModelError, SaveError
from seedtune.report.progress import Progress
from seedtune.utils import files
from seedtune.utils.files import check_room, save_whole
from tiny import save_tiny, tiny_llama, tiny_tokenizer


def of_object(tmp_path, model, **options):
    return ESTrainer(model, lambda completions, **_: [float(len(c)) for c in completions],
                     config(tmp_path, **options), [{"prompt": "one"}, {"prompt": "two"}],
                     processing_class=tiny_tokenizer(), progress=Progress())  # fmt: skip


class Adapted(nn.Module):
    """As a model of PEFT: wraps a model, and merges into it."""

    def __init__(self, model, kind="LORA"):
        super().__init__()
        self.base_model = model
        self.peft_config = {"default": SimpleNamespace(peft_type=SimpleNamespace(value=kind))}

    def merge_and_unload(self):
        with torch.no_grad():
            self.base_model.lm_head.weight.add_(1)
        return self.base_model


# --- before the first iteration ---------------------------------------------------------------------------------------


def hot(t):
    t.model.generation_config.temperature = 0.7  # without do_sample


def unsaveable_config(t):
    t.model.config.note = object()


def unsaveable_tokenizer(t):
    t.engine.tokenizer = SimpleNamespace(name="no save_pretrained")


@pytest.mark.parametrize("spoil", [hot, unsaveable_config, unsaveable_tokenizer])
@pytest.mark.parametrize("perturbation", ["full", "lowrank"])
def test_a_model_that_cannot_be_saved_is_refused_before_the_first_iteration(tmp_path, spoil, perturbation):
    t = trainer(tmp_path, perturbation=perturbation)
    spoil(t)
    with pytest.raises(ModelError, match="cannot be saved"):
        t.train()
    assert not (tmp_path / "run/journal.jsonl").exists()
    assert not list((tmp_path / "run").glob("*checkpoint*"))


def test_what_is_wrong_with_the_generation_config_is_said(tmp_path):
    t = trainer(tmp_path)
    hot(t)
    with pytest.raises(ModelError, match=r"do_sample = True.*temperature"):
        t.train()
    t.model.generation_config.do_sample = True
    assert t.train().global_step == 3


def test_a_model_that_cannot_be_saved_is_refused_at_a_resume(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    t = trainer(tmp_path)
    hot(t)
    with pytest.raises(ModelError, match="cannot be saved"):
        t.train(resume_from_checkpoint=True)
    assert len(journal_of(tmp_path).splitlines()) == 2


def test_a_disk_without_room_for_a_checkpoint_is_found_out_before_the_first_iteration(tmp_path, monkeypatch):
    sizes = []

    def allocate(descriptor, offset, size):
        sizes.append(size)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "posix_fallocate", allocate, raising=False)
    with pytest.raises(SaveError, match=r"a checkpoint takes.*your quota is used up"):
        trainer(tmp_path, save_only_model=True).train()
    with pytest.raises(SaveError, match="your quota is used up"):
        trainer(tmp_path, optimizer="adam").train()
    weights = sum(p.nbytes for p in tiny_llama().parameters())
    assert sizes == [weights, 4 * weights]  # with the state: the center, and two moments
    assert not (tmp_path / "run/journal.jsonl").exists()


def test_room_is_asked_for_and_given_back(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path, 1 << 20, "a checkpoint")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("the disk was filled, for others too"))
    with pytest.raises(SaveError, match="make room"):
        check_room(tmp_path, 2 * free, "a checkpoint")


def test_checkpoints_that_will_fill_the_disk_are_announced(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    notes = Notes()
    trainer(tmp_path, progress=notes, save_steps=1, max_steps=30, population_size=2).train()
    assert any("30 checkpoints of" in text and "save_total_limit" in text for text in notes.texts)
    notes = Notes()
    trainer(tmp_path, progress=notes, output_dir=str(tmp_path / "b"), save_steps=1, save_total_limit=1).train()
    assert not any("save_total_limit" in text for text in notes.texts)


def test_a_folder_that_may_not_be_written_is_refused_at_once(tmp_path, monkeypatch):
    t = trainer(tmp_path)

    def refuses(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(t.engine, "check_save", refuses)
    with pytest.raises(SaveError, match="give yourself the right to write there"):
        t.train()


# --- models as users bring them ---------------------------------------------------------------------------------------


def test_a_model_of_peft_is_merged_at_the_start_and_it_is_said(tmp_path, caplog):
    inner = tiny_llama()
    before = inner.lm_head.weight.detach().clone()
    t = of_object(tmp_path, Adapted(inner))
    assert "adapter (LORA) was merged" in caplog.text
    t.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.lm_head.weight, before + 1)
    assert t.train().global_step == 3


def test_adapters_that_cannot_be_merged_are_refused(tmp_path):
    prompt_tuning = Adapted(tiny_llama(), "PROMPT_TUNING")
    prompt_tuning.merge_and_unload = None
    with pytest.raises(ModelError, match=r"PROMPT_TUNING.*cannot be merged"):
        of_object(tmp_path, prompt_tuning)
    switched_off = Adapted(tiny_llama())
    switched_off.base_model.model.layers[0].disable_adapters = True
    with pytest.raises(ModelError, match=r"adapter \(LORA\) is switched off: .*enable_adapter_layers"):
        of_object(tmp_path, switched_off)
    broken = Adapted(tiny_llama())
    broken.merge_and_unload = lambda: 1 / 0
    with pytest.raises(ModelError, match="cannot merge"):
        of_object(tmp_path, broken)
    injected = tiny_llama()
    layer = injected.model.layers[0].mlp.up_proj
    wrapper = nn.Module()
    wrapper.base_layer = layer
    injected.model.layers[0].mlp.up_proj = wrapper
    with pytest.raises(ModelError, match="load_adapter"):
        of_object(tmp_path, injected)


def test_a_folder_with_an_adapter_takes_peft(tmp_path, monkeypatch):
    save_tiny(tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"no adapter_model.safetensors: save the adapter there again"):
        loading.load(ModelSpec(str(folder)))
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"adapter_model.bin is a pickle, which is never loaded"):
        loading.load(ModelSpec(str(folder)))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ModelError, match=rf"adapter \(LORA\) of '{re.escape(str(tmp_path / 'base'))}'.*pip install peft"
    ):
        loading.load(ModelSpec(str(folder)))
    merging = SimpleNamespace(PeftModel=SimpleNamespace(from_pretrained=lambda base, name: Adapted(base)))
    monkeypatch.setitem(sys.modules, "peft", merging)
    model, tokenizer = loading.load(ModelSpec(str(folder)))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(model.lm_head.weight, base.lm_head.weight + 1)
    assert tokenizer.chat_template
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="both a whole model"):
        loading.load(ModelSpec(str(folder)))


def test_an_adapter_with_embeddings_of_more_tokens_grows_its_base(tmp_path, monkeypatch):
    """As after training with added tokens: PEFT saves both embeddings whole, and loads them into as many rows only."""
    save_tiny(tmp_path / "base")
    folder, size = tmp_path / "adapter", len(tiny_tokenizer())
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    whole = torch.ones(size + 3, 32)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    save_file({f"base_model.model.{name}": whole.clone() for name in names}, folder / "adapter_model.safetensors")
    merging = SimpleNamespace(PeftModel=SimpleNamespace(from_pretrained=lambda base, name: Adapted(base)))
    monkeypatch.setitem(sys.modules, "peft", merging)
    model, _ = loading.load(ModelSpec(str(folder)))
    assert [len(model.get_input_embeddings().weight), len(model.lm_head.weight)] == [size + 3] * 2
    assert model.config.vocab_size == size + 3


@pytest.mark.parametrize("settings", ['{"peft_type": "LORA"}', "[]", "{"])
def test_an_adapter_that_names_no_base_is_refused(tmp_path, settings):
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(ModelError, match="adapter"):
        loading.load(ModelSpec(str(tmp_path)))


def test_what_torch_wraps_around_a_model_is_taken_off(tmp_path):
    for wrapped in (torch.compile(tiny_llama(), backend="eager"), nn.DataParallel(tiny_llama())):
        assert type(loading.as_plain_model(wrapped)) is type(tiny_llama())


@pytest.mark.parametrize("model", [3, nn.Linear(2, 2), None])
def test_what_is_no_model_is_refused(tmp_path, model):
    with pytest.raises(ModelError, match="causal language model"):
        of_object(tmp_path, model)


def test_weights_that_are_not_in_memory_are_refused(tmp_path):
    model = tiny_llama()
    model.model.layers[1].mlp.to("meta")
    with pytest.raises(ModelError, match="not in memory"):
        of_object(tmp_path, model)


# --- weights in unusual memory ----------------------------------------------------------------------------------------


def untied(tmp_path):
    """The configuration ties the head to the embedding, and the model does not."""
    model = tiny_llama(tied=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 0.5)
    return model


def tied_by_hand(tmp_path):
    model = tiny_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def shared_modules(tmp_path):
    model = tiny_llama()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    return model


def transposed(tmp_path):
    model = tiny_llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.T.contiguous().T
    return model


def one_storage(tmp_path):
    model = tiny_llama()
    a, b = model.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.gate_proj.weight
    a.data, b.data = torch.stack([a.data, b.data])
    return model


@pytest.mark.parametrize("scope", ["all", "down_proj"])
@pytest.mark.parametrize("make", [untied, tied_by_hand, shared_modules, transposed, one_storage])
def test_weights_in_unusual_memory_are_saved(tmp_path, make, scope):
    model = make(tmp_path)
    t = of_object(tmp_path, model, scope=scope, max_steps=1)
    t.train()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoint-1").eval()
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


# --- errors of the disk -----------------------------------------------------------------------------------------------


def rust(number):
    return SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")


CURES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "your quota is used up",
    errno.EIO: "the disk itself fails",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "the right to write",
    errno.EFBIG: "takes no file of that size",
}


@pytest.mark.parametrize(("number", "cure"), CURES.items())
@pytest.mark.parametrize(
    "error", [rust, lambda n: OSError(n, os.strerror(n)), lambda n: Exception(f"x (os error {n})")]
)
def test_an_error_of_the_disk_says_what_to_do(tmp_path, number, cure, error):
    (tmp_path / "target").mkdir()
    (tmp_path / "target/before").write_text("1")

    def write(folder):
        raise error(number)

    with pytest.raises(SaveError, match=rf"{os.strerror(number)}.*{cure}.*--resume"):
        save_whole(tmp_path / "target", write)
    assert [p.name for p in tmp_path.rglob("*")] == ["target", "before"]


def test_errors_that_are_not_of_the_disk_stay_what_they_are(tmp_path):
    for error in (KeyboardInterrupt(), ValueError("odd")):
        with pytest.raises(type(error)):
            save_whole(tmp_path / "target", lambda folder, error=error: (_ for _ in ()).throw(error))
    assert files.storage_error(ValueError("odd")) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("where", ["save", "save_state"])
def test_a_run_is_not_lost_when_safetensors_cannot_write(tmp_path, monkeypatch, number, where):
    trainer(tmp_path, output_dir=str(tmp_path / "whole")).train()
    t = trainer(tmp_path, save_steps=2)
    monkeypatch.setattr(t.engine, where, lambda folder: (_ for _ in ()).throw(rust(number)))
    with pytest.raises(SaveError, match=CURES[number]) as caught:
        t.train()
    assert "2 iterations are safe" in caught.value.__notes__[0]
    assert not list((tmp_path / "run").glob("*checkpoint*"))
    trainer(tmp_path).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path) == journal_of(tmp_path, "whole")


def test_save_model_says_what_is_wrong_with_the_disk(tmp_path, monkeypatch):
    t = trainer(tmp_path)
    monkeypatch.setattr(t.engine, "save", lambda folder: (_ for _ in ()).throw(rust(errno.EDQUOT)))
    with pytest.raises(SaveError, match="your quota is used up"):
        t.save_model(str(tmp_path / "here"))
