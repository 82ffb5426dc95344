"""What a run is compared with when it is resumed."""

from __future__ import annotations

import pytest

from seedtune.errors import JournalError
from seedtune.journal.record import check_same_trajectory

CONFIG = {"seed": 42, "sigma": 0.01}


def header(**base):
    return {"config": CONFIG, "base": {"model": "m", "digest": "0a", **base}, "noise_version": 1}


def test_a_header_of_0_1_0_names_quantized_layers_in_british_spelling():
    now = header(quantized={"a.weight": "nf4"})
    check_same_trajectory(header(quantised={"a.weight": "nf4"}), now, {})
    with pytest.raises(JournalError, match=r"quantized = \{'a.weight': 'int8'\}"):
        check_same_trajectory(header(quantised={"a.weight": "int8"}), now, {})
    with pytest.raises(JournalError, match="quantized = None"):
        check_same_trajectory(header(), now, {})


def test_a_model_may_move_and_a_new_setting_has_its_default():
    before = {**header(), "config": {"seed": 42}}
    check_same_trajectory(before, header(model="elsewhere"), {"sigma": 0.01, "unknown": 1})
    with pytest.raises(JournalError, match=r"sigma = 0\.02"):
        check_same_trajectory(before, header(), {"sigma": 0.02})
