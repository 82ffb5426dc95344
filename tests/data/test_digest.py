"""Equal data have equal digests: in another process, with another hash seed, and as 0.1.0 counted them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import OrderedDict, UserDict
from datetime import date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
import torch
from PIL import Image

from runs import ROWS, journal_of, letters, trainer
from seedtune.data.digest import DataDigest
from seedtune.errors import DataError, JournalError
from unstable import UNSTABLE, Case, Opaque, digest


@pytest.mark.parametrize("kind", UNSTABLE)
def test_equal_data_have_one_digest(kind):
    keep = UNSTABLE[kind]()
    assert digest(keep) == digest(UNSTABLE[kind]())


def test_a_digest_is_the_same_under_every_hash_seed():
    code = "from unstable import UNSTABLE, digest; print(*(digest(make()) for make in UNSTABLE.values()))"
    folders = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    here = " ".join(digest(make()) for make in UNSTABLE.values())
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": folders}
        there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert there.stdout.strip() == here, there.stderr


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a"}, {"b"}),
        (np.arange(5000), np.where(np.arange(5000) == 2500, 0, np.arange(5000))),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(2, np.float32), np.zeros(2, np.int32)),
        (torch.zeros(5000), torch.cat([torch.zeros(2500), torch.ones(1), torch.zeros(2499)])),
        (Image.new("RGB", (4, 3), 0), Image.new("RGB", (4, 3), 1)),
        (Image.new("RGB", (4, 3), 0), Image.new("RGB", (3, 4), 0)),
        ({1: "a"}, {1: "b"}),
        ({(1, 2): "a"}, {(1, 3): "a"}),
        (Case({"a"}), Case({"b"})),
        (b"a", b"b"),
        (datetime(2026, 1, 1), datetime(2026, 1, 2)),
        (0.0, -0.0),
        (float("nan"), float("inf")),
        (None, "None"),
        (Opaque(), Case(set())),
    ],
)
def test_other_data_have_another(one, other):
    assert digest(one) != digest(other)


def test_plain_data_have_the_digest_of_0_1_0():
    rows = [
        {"prompt": "a", "x": 1, "y": [1.5, None, True, {"b": "é\ud800", "a": [2]}], "z": float("nan"), "w": -0.0},
        {"prompt": [{"role": "user", "content": "\u2028"}], "x": 10**30, "when": datetime(2026, 1, 2, 3, 4, 5)},
        {"prompt": "c", 3: "keys of whole numbers", "price": Decimal("1.10"), "day": date(2026, 1, 2), "raw": b"\x00"},
        {
            "prompt": "d",
            "keys": {2: "b", 1: "a"},
            "took": timedelta(hours=1),
            "number": np.int64(5),
            "o": OrderedDict(),
        },
    ]
    rows[2] = {str(key): value for key, value in rows[2].items()}
    old, new = hashlib.sha256(), DataDigest()
    for row in rows:
        old.update(json.dumps([row, (1, 2)], sort_keys=True, default=str).encode())
        new.add(row, (1, 2))
    assert new.hexdigest() == old.hexdigest()[:16]
    assert digest(UserDict(a=1)) == digest({"a": 1})


def test_what_only_counts_by_its_kind_is_named_once_per_column():
    total = DataDigest()
    for _ in range(2):
        total.add({"prompt": "p", "fine": {"a"}, "odd": [Opaque()], "f": print, "tuples": {(1, 2): Opaque()}}, ())
    assert total.left_out == {"odd": "Opaque", "f": "builtin_function_or_method", "tuples": "Opaque"}


def test_a_row_that_holds_itself_is_refused():
    row = {"prompt": "p", "loop": []}
    row["loop"].append(row["loop"])
    with pytest.raises(DataError, match="row 1 cannot be read to its end"):
        DataDigest().add(row, ())


def test_a_run_on_sets_and_objects_resumes_and_other_data_are_refused(tmp_path, caplog):
    def rows(word="one", held=0):
        return [{**row, "accepted": {word, "two", "three"}, "grader": Opaque(held)} for row in ROWS]

    trainer(tmp_path, rows=rows(), reward_funcs=letters, max_steps=1).train()
    assert caplog.text.count("column 'grader' holds objects (Opaque)") == 1
    trainer(tmp_path, rows=rows(held=1), reward_funcs=letters, max_steps=2).train(resume_from_checkpoint=True)
    assert journal_of(tmp_path).count(b'"kind":"iteration"') == 2
    with pytest.raises(JournalError, match="a row, a column, their order or the chat template has changed"):
        trainer(tmp_path, rows=rows("other"), reward_funcs=letters, max_steps=3).train(resume_from_checkpoint=True)
