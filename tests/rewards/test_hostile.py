"""What a model might write to break, fool or take over a scorer: it passes nowhere, raises nowhere, and runs nowhere.
`benchmarks/hostile.py` does the same with 10,000 outputs, and says which of them takes longest.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import hostile
import scorers

COUNT = 400
GYM = ["countdown", "spiral_matrix", "simple_integration", "mini_sudoku", "rush_hour", "coin_flip", "chain_sum"]


def test_outputs_repeat_and_are_of_all_kinds(tmp_path):
    made = list(hostile.outputs(2000, tmp_path / "canary"))
    assert made == list(hostile.outputs(2000, tmp_path / "canary"))
    assert {kind.removesuffix(", a megabyte") for kind, _ in made} == {*hostile.KINDS, "code"}
    assert sum(len(text) >= 1_000_000 for _, text in made) >= 10
    texts = "".join(text for _, text in made if len(text) < 10**5)
    assert all(odd in texts for odd in ("\x00", "\ud800", "\u202e", "9**9**9**9", "٣", "os.system", "1e999999999"))


@pytest.mark.parametrize("kind", ["of_tasks", "of_answers", "of_gym"])
def test_hostile_outputs_pass_nowhere_raise_nowhere_and_run_nowhere(kind, tmp_path):
    if kind == "of_gym" and find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is missing")
    found = getattr(scorers, kind)(*([GYM] if kind == "of_gym" else []))
    assert len(found) >= 4
    canary = tmp_path / "canary"
    for name, passes in found.items():
        passed = [text[:99] for _, text in hostile.outputs(COUNT, canary) if passes(text)]
        assert not passed, name
        assert not canary.exists(), name


def test_right_answers_pass():
    """Otherwise nothing above could fail."""
    of_tasks, of_answers = scorers.of_tasks(), scorers.of_answers()
    assert of_tasks["math: math_correct"](rf"\boxed{{{scorers.builtin('math').test[0]['solution']}}}")
    assert of_tasks["conciseness: correct"]("Paris")
    assert of_answers["equivalence: exact"]("Zanzibar!")
    assert of_answers["calibration: exact"]("31415.5. Confidence: 90%")
    assert of_answers["majority: exact"]("\\boxed{31415.5}")
