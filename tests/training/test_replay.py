"""A run is its journal: replay, patches, and what is wrong with them."""

from __future__ import annotations

import json
import random
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from transformers import AutoModelForCausalLM

from runs import trained, trainer, weights
from seedtune.cli.main import main
from seedtune.cli.model_ref import own_settings
from seedtune.errors import JournalError, SeedtuneError
from seedtune.journal import record
from seedtune.journal.patch import Patch
from seedtune.training import replay
from tiny import save_tiny

WAYS = {
    "full": {},
    "lowrank": {"perturbation": "lowrank", "rank": 2, "antithetic": True},
    "adam": {"optimizer": "adam", "anchor_decay": 0.1, "noise": "shared"},
    "half": {"master_dtype": "bfloat16", "optimizer": "momentum", "antithetic": True},
    "embeddings": {"perturbation": "lowrank", "lowrank_embeddings": True, "rank": 2},
    "vectors": {"perturbation": "lowrank", "lowrank_vectors": True, "master_dtype": "bfloat16"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replay_and_patch_give_the_bytes_of_the_run(tmp_path, way, dtype, capsys):
    run = trained(tmp_path, dtype=dtype, max_steps=5, save_steps=2, **WAYS[way])
    assert main(["replay", str(run / "journal.jsonl"), "--out", str(tmp_path / "replayed")]) == 0
    assert main(["export", str(run), "--patch", str(tmp_path / "x.seedtune")]) == 0
    assert main(["apply", str(tmp_path / "x.seedtune"), "--out", str(tmp_path / "applied")]) == 0
    assert main(["replay", str(run), "--until", "2", "--out", str(tmp_path / "two")]) == 0
    assert "digests each checked" in capsys.readouterr().out
    assert weights(tmp_path / "replayed") == weights(tmp_path / "applied") == weights(run / "checkpoint-5")
    assert weights(tmp_path / "two") == weights(run / "checkpoint-2") != weights(run / "checkpoint-5")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "applied", dtype="auto").dtype == dtype


def test_a_run_that_is_older_than_a_setting_had_its_default(tmp_path, capsys):
    new = trained(tmp_path, "new", perturbation="lowrank")
    old = trained(tmp_path, "old", perturbation="lowrank", max_steps=2)
    reseal(old / "journal.jsonl", lambda line: line.get("config", {}).pop("lowrank_embeddings", None))
    assert "lowrank_embeddings" not in (old / "journal.jsonl").read_text()
    assert main(["diff", str(old), str(new)]) == 0
    assert "lowrank_embeddings" not in capsys.readouterr().out
    again = {"perturbation": "lowrank", "model": str(tmp_path / "base"), "output_dir": str(old)}
    with pytest.raises(JournalError, match="started with lowrank_embeddings = False and would go on with True"):
        trainer(tmp_path, lowrank_embeddings=True, **again).train(resume_from_checkpoint=True)
    trainer(tmp_path, **again).train(resume_from_checkpoint=True)
    assert weights(old / "checkpoint-3") == weights(new / "checkpoint-3")


def test_another_base_model_is_named(tmp_path, capsys):
    run = trained(tmp_path)
    save_tiny(tmp_path / "other", seed=1)
    assert main(["replay", str(run), "--model", str(tmp_path / "other"), "--out", str(tmp_path / "x")]) == 1
    assert re.search(r"made from .*base.* with digest \w{16}; the model given, .*other", capsys.readouterr().err)
    assert not (tmp_path / "x").exists()


def test_a_base_model_that_differs_by_one_bit_is_caught(tmp_path, capsys):
    run = trained(tmp_path)
    file = tmp_path / "base" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main(["replay", str(run), "--out", str(tmp_path / "x")]) == 1
    assert "it is another model, revision or dtype" in capsys.readouterr().err


def test_journals_that_are_no_journals(tmp_path, capsys):
    run = trained(tmp_path)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    for name, text, says in [
        ("empty", "", "is empty"),
        ("torn", lines[0][:40], "has no complete line"),
        ("reordered", "".join([lines[0], lines[2], lines[1], *lines[3:]]), "line 2 is damaged"),
        ("gap", "".join([lines[0], *lines[2:]]), "line 2 is damaged"),
        ("headless", "".join(lines[1:]), "its header is damaged"),
        ("edited", "".join(lines).replace('"t":2', '"t":3'), "line 3 is damaged"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "journal.jsonl").write_text(text)
        assert main(["replay", str(tmp_path / name), "--out", str(tmp_path / "x")]) == 1
        assert says in capsys.readouterr().err, name


def reseal(path, change):
    """Change a journal and mend its checksums: what a forger would do."""
    lines, chain = [], record.ROOT
    for text in path.read_text().splitlines():
        line = json.loads(text)
        del line["chain"]
        change(line)
        sealed, chain = record.seal(line, chain)
        lines.append(sealed)
    path.write_text("".join(lines))


def test_a_changed_coefficient_is_caught_and_named(tmp_path, capsys):
    run = trained(tmp_path)

    def change(line):
        if line.get("t") == 2:
            line["coefficients"][0] = (float.fromhex(line["coefficients"][0]) * 1.01).hex()

    reseal(run / "journal.jsonl", change)
    assert main(["replay", str(run), "--out", str(tmp_path / "x")]) == 1
    assert "after iteration 2 the weights do not have the digest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda line: line.update(noise_version=2) if "base" in line else None, "noise version 2"),
        (lambda line: line["config"].update(warp=9) if "base" in line else None, "does not know: warp"),
        (lambda line: line["config"].update(restore="subtract") if "base" in line else None, "restore: subtract"),
        (lambda line: line["base"]["scope"].pop() if "base" in line else None, "parameters in scope are not those"),
        (lambda line: line.update(format=9) if "base" in line else None, "journal format 9"),
    ],
)
def test_what_cannot_be_replayed(tmp_path, change, says, capsys):
    run = trained(tmp_path)
    reseal(run / "journal.jsonl", change)
    assert main(["replay", str(run), "--out", str(tmp_path / "x")]) == 1
    assert says in capsys.readouterr().err


def test_patches_that_are_damaged(tmp_path):
    data = Patch.of(*parts(trained(tmp_path))).to_bytes()
    whole = Patch.from_bytes(data)
    assert whole.to_bytes() == data
    for cut in (3, 12, 30, len(data) - 1):
        with pytest.raises(JournalError, match=r"not a Seedtune patch|damaged"):
            Patch.from_bytes(data[:cut])
    for place in range(0, len(data), 7):
        bad = bytearray(data)
        bad[place] ^= 0x55
        with pytest.raises(JournalError):
            Patch.from_bytes(bytes(bad))
    with pytest.raises(JournalError, match="format 3"):
        Patch.from_bytes(data[:8] + b"\x03\x00" + data[10:])
    with pytest.raises(JournalError, match="claims to hold"):
        Patch.from_bytes(data[:10] + b"\xff" * 8 + data[18:])


def sealed(header, arrays, size=None):
    """A patch whose frame is whole, whatever it holds: what a forger would do."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    payload = struct.pack("<Q", len(text)) + text + arrays
    size = len(payload) if size is None else size
    return struct.pack("<8sHQ", b"SEEDTUNE", 1, size) + zstandard.ZstdCompressor(write_checksum=True).compress(payload)


def test_patches_that_were_made_up(tmp_path):
    """Whole frames, with headers that lie: a clean error for each, and no more memory than what is there."""
    patch = Patch.of(*parts(trained(tmp_path)))
    count, members = patch.coefficients_T_N.shape
    arrays = b"".join(a.tobytes() for a in (patch.coefficients_T_N, patch.rates_T, patch.digests_T))
    good = {**patch.header, "iterations": count, "members": members}
    assert len(Patch.from_bytes(sealed(good, arrays))) == count
    draw, junk = random.Random(5), [None, -1, 0, 2**70, 1e999, "x", [], {}, True, [[]], "é" * 50]
    made = 0
    for where in (good, good["base"], good["config"]):
        for key in where:
            for value in junk:
                header = json.loads(json.dumps(good))
                inner = header if where is good else header["base"] if where is good["base"] else header["config"]
                inner[key] = value
                if draw.random() < 0.3:
                    del inner[key]
                try:
                    forged = Patch.from_bytes(sealed(header, arrays))
                    replay.replay_settings(forged.header["config"])
                except SeedtuneError:
                    made += 1
    assert made > 100
    for header in (b"", b"[]", b"{", b"[" * 100_000, b'{"iterations":1e999,"members":4}', b"\xff\xfe"):
        with pytest.raises(JournalError, match="damaged"):
            Patch.from_bytes(sealed(header, arrays))
    with pytest.raises(JournalError, match="another size"):
        Patch.from_bytes(sealed(good, arrays + bytes(10_000_000), size=100))
    huge = zstandard.ZstdCompressor().compressobj(size=2**40)
    with pytest.raises(JournalError, match="another size"):
        Patch.from_bytes(struct.pack("<8sHQ", b"SEEDTUNE", 1, 100) + huge.compress(b"x") + huge.flush(1))
    with pytest.raises(JournalError, match="not a Seedtune patch"):
        Patch.from_bytes(b"")


@pytest.mark.parametrize("name", ["full", "lowrank"])
def test_the_patches_of_the_documentation_can_be_inspected(name, capsys):
    assert main(["inspect", str(Path(__file__).parents[2] / "docs" / "reference" / f"example-{name}.seedtune")]) == 0
    assert "12 weights in 2 parameters" in " ".join(capsys.readouterr().out.split())


def parts(run):
    patch = replay.load(run)
    iterations = [
        record.Iteration(t + 1, (), c, float(patch.rates_T[t]), (), patch.digest(t + 1))
        for t, c in enumerate(patch.coefficients_T_N)
    ]
    return patch.header, iterations


def test_a_patch_of_500_iterations_of_30_members_is_at_most_100_kb(tmp_path):
    header, _ = parts(trained(tmp_path))
    rng = np.random.default_rng(0)
    iterations = [
        record.Iteration(t, (), rng.standard_normal(30).astype(np.float32), 5e-4, (), f"{rng.integers(2**63):016x}")
        for t in range(1, 501)
    ]
    assert len(Patch.of(header, iterations).to_bytes()) <= 100_000


def test_scale_half_is_half_way_and_zero_is_the_base(tmp_path):
    run = trained(tmp_path, learning_rate=0.05)
    for scale in ("0", "0.5", "1"):
        assert main(["apply", str(run), "--scale", scale, "--out", str(tmp_path / scale)]) == 0
    models = {s: AutoModelForCausalLM.from_pretrained(tmp_path / s).state_dict() for s in ("0", "0.5", "1")}
    for name, base in AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict().items():
        assert torch.equal(models["0"][name], base)
        assert torch.allclose(models["0.5"][name], (base + models["1"][name]) / 2, atol=1e-5)
        assert not torch.equal(models["1"][name], base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_patches_of_one_base_add_up_in_any_order(tmp_path, dtype):
    a = trained(tmp_path, "a", dtype=dtype, learning_rate=0.05)
    b = trained(tmp_path, "b", seed=9, learning_rate=0.05, **WAYS["lowrank"])
    for name, runs in {"ab": (a, b), "ba": (b, a)}.items():
        assert main(["apply", *map(str, runs), "--out", str(tmp_path / name)]) == 0
    base, ab, ba, only_a, only_b = (
        AutoModelForCausalLM.from_pretrained(p, dtype="auto").state_dict()
        for p in (tmp_path / "base", tmp_path / "ab", tmp_path / "ba", a / "checkpoint-3", b / "checkpoint-3")
    )
    for name in base:
        expected = only_a[name].float() + only_b[name].float() - base[name].float()
        assert ab[name].dtype == dtype
        assert torch.allclose(ab[name].float(), expected, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)
        assert torch.allclose(ab[name].float(), ba[name].float(), atol=2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_patches_of_different_bases_do_not_compose(tmp_path, capsys):
    a = trained(tmp_path, "a")
    (tmp_path / "base").rename(tmp_path / "base-a")
    save_tiny(tmp_path / "base", seed=1)
    b = trained(tmp_path, "b")
    code = main(["apply", str(a), str(b), "--model", str(tmp_path / "base-a"), "--out", str(tmp_path / "x")])
    assert code == 1
    assert "only patches of one base compose" in capsys.readouterr().err


def test_inspect_and_diff(tmp_path, capsys):
    a, b, c = trained(tmp_path, "a"), trained(tmp_path, "b", max_steps=2), trained(tmp_path, "c", seed=2)
    assert main(["inspect", str(a)]) == 0
    out = capsys.readouterr().out
    for text in ("4 members each, full rank", "weights after", replay.load(a).digest(3), "sigma 0.05"):
        assert text in out
    assert main(["diff", str(a), str(b)]) == 0
    assert "equal after each of 2 iterations.\nThey have 3 and 2 iterations." in capsys.readouterr().out
    assert main(["diff", str(a), str(c)]) == 1
    out = capsys.readouterr().out
    assert re.search(r"seed: \d+ | 2", out)
    assert "first differ after iteration 1" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["replay", "nowhere", "--out", "x"], "there is no journal or patch 'nowhere'"),
        (["apply", "RUN", "--out", "."], "is not empty"),
        (["replay", "RUN", "--until", "9", "--out", "x"], "iterations 1 to 3"),
        (["apply", "RUN", "RUN", "--until", "1", "--out", "x"], "--until is for one patch"),
        (["apply", "RUN", "--scale", "nan", "--out", "x"], "must be a finite number"),
        (["apply", "README.md", "--out", "x"], "line 1 is damaged|not a Seedtune"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, arguments, says, capsys):
    run = trained(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("hello\n")
    assert main([str(run) if a == "RUN" else a for a in arguments]) in (1, 2)
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "x").exists()


def test_a_patch_does_not_say_which_code_is_run(tmp_path):
    patch = Patch.of(*parts(trained(tmp_path)))
    for functions in (["os.system"], [[1]], "conciseness"):
        config = {**patch.header["config"], "reward_funcs": functions, "trust_remote_code": True, "task": "conciseness"}
        file = tmp_path / "forged.seedtune"
        file.write_bytes(replace(patch, header={**patch.header, "config": config}).to_bytes())
        found = own_settings(str(file), {})
        assert found["task"] == "conciseness"
        assert not {"reward_funcs", "trust_remote_code"} & set(found)
        assert not replay.replay_settings(replay.load(file).header["config"]).trust_remote_code
