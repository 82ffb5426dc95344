"""GGUF files are dequantized once; what is kept of them stays whole, within a limit, and under concurrent use."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from seedtune.engines import gguf_cache, loading
from seedtune.engines.specs import ModelSpec
from seedtune.errors import ConfigError, ModelError
from seedtune.utils.locks import lock
from tiny import tiny_llama, tiny_tokenizer


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SEEDTUNE_CACHE_GB", raising=False)
    return tmp_path / "cache/gguf"


class Converter:
    """As loading a GGUF file; counts how often it is dequantized."""

    def __init__(self, name="a", size=1000):
        self.entry = gguf_cache.cache_folder() / "gguf" / name
        self.text, self.made = name * size, 0

    def make(self):
        self.made += 1
        return self.text

    @staticmethod
    def save(text, folder):
        (folder / "model").write_text(text)

    def read(self, folder):
        text = (folder / "model").read_text()
        if text != self.text:
            raise ValueError("damaged")
        return text

    def __call__(self):
        assert gguf_cache.load_through(self.entry, self.read, self.make, self.save) == self.text
        return self.made


def entries(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_a_file_is_dequantized_once(cache):
    converter = Converter()
    assert [converter() for _ in range(3)] == [1, 1, 1]
    assert entries(cache) == ["a"]


def test_the_same_model_comes_back_bit_for_bit(cache, tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"any bytes")
    made = []
    monkeypatch.setattr(
        loading, "_read_gguf", lambda file, dtype: made.append(dtype) or (tiny_llama().to(dtype), tiny_tokenizer())
    )
    for dtype in ("bfloat16", "bfloat16", "float32"):
        model, tokenizer = loading.load(ModelSpec(str(tmp_path / "model.gguf"), dtype=dtype))
        expected = tiny_llama().to(getattr(torch, dtype))
        assert model.dtype == expected.dtype
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
        assert tokenizer("hi <|end|>")["input_ids"] == tiny_tokenizer()("hi <|end|>")["input_ids"]
    assert made == [torch.bfloat16, torch.float32]
    (tmp_path / "model.gguf").write_bytes(b"other bytes")  # under the same name
    loading.load(ModelSpec(str(tmp_path / "model.gguf")))
    assert len(made) == 3
    with pytest.raises(ModelError, match="no GGUF file"):
        loading.load(ModelSpec(str(tmp_path / "none.gguf")))


def test_the_digest_is_of_the_bytes_and_of_what_reads_them(cache, tmp_path, monkeypatch):
    for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(data)
    a, b, c = (gguf_cache.folder_of(tmp_path / name, torch.bfloat16) for name in "abc")
    assert a == b != c
    assert gguf_cache.folder_of(tmp_path / "a", torch.float16) != a
    monkeypatch.setattr(gguf_cache, "version", lambda package: "0")
    assert gguf_cache.folder_of(tmp_path / "a", torch.bfloat16) != a


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty"])
def test_a_damaged_entry_is_made_again(cache, damage, caplog):
    converter = Converter()
    converter()
    file = cache / "a/model"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("aaa" if damage == "truncated" else "")
    assert [converter(), converter()] == [2, 2]
    assert "made again" in caplog.text


def test_what_was_not_used_for_longest_goes_first(cache, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE_GB", str(2500e-9))
    a, b, c = map(Converter, "abc")
    for n, converter in enumerate((a, b)):
        converter()
        os.utime(converter.entry / "used", (n + 1, n + 1))
    a()  # used again
    c()
    assert entries(cache) == ["a", "c"]
    assert (a(), c(), b()) == (1, 1, 2)


def test_an_entry_larger_than_the_limit_is_not_kept(cache, monkeypatch):
    Converter("b", 100)()
    monkeypatch.setenv("SEEDTUNE_CACHE_GB", str(500e-9))
    converter = Converter()
    assert [converter(), converter()] == [1, 2]
    assert "a" not in entries(cache)


@pytest.mark.parametrize("given", ["0", "-1", "much", "nan"])
def test_the_limit_is_checked_and_0_keeps_nothing(cache, monkeypatch, given):
    monkeypatch.setenv("SEEDTUNE_CACHE_GB", given)
    if given == "0":
        assert [Converter()() for _ in range(2)] == [1, 1]
        assert not cache.exists()
    else:
        with pytest.raises(ConfigError, match="SEEDTUNE_CACHE_GB"):
            Converter()()


def test_an_entry_in_use_is_not_removed(cache, monkeypatch):
    Converter()()
    with (cache / "a.lock").open("a+") as held:
        assert lock(held)
        monkeypatch.setenv("SEEDTUNE_CACHE_GB", str(1500e-9))
        Converter("b")()
        assert "a" in entries(cache)
    Converter("c")()
    assert "a" not in entries(cache)


def test_drafts_of_killed_processes_are_removed(cache):
    (cache / ".z-bfloat16-5.1.0.4242.tmp").mkdir(parents=True)
    Converter()()
    assert entries(cache) == ["a"]


def test_a_full_disk_or_a_folder_that_cannot_be_written_only_costs_time(cache, monkeypatch, caplog):
    def full(text, folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Converter, "save", staticmethod(full))
    converter = Converter()
    assert [converter(), converter()] == [1, 2]
    assert "make room" in caplog.text
    assert not entries(cache)
    cache.parent.joinpath("file").write_text("")
    monkeypatch.setenv("SEEDTUNE_CACHE", str(cache.parent / "file"))
    assert Converter()() == 1


class Slow(Converter):
    def make(self):
        with (self.entry.parent / "made").open("a") as log:
            log.write("x")
        time.sleep(0.5)
        return super().make()


def use(cache):
    os.environ["SEEDTUNE_CACHE"] = cache
    Slow()()


def test_processes_that_want_the_same_model_wait_for_the_first(cache):
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=use, args=(str(cache.parent),)) for _ in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert Path(cache / "made").read_text() == "x"
