"""Where a completion says its answer."""

from __future__ import annotations

import pytest

from seedtune.tasks.final_answer import last_boxed, last_hashed, last_tagged


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so <answer> 4 </answer>", "4"),
        ("<answer>4</answer> no: <answer>5</answer> yes", "5"),
        ("<answer>4</answer> and <answer>5", "4"),
        ("<answer></answer>", ""),
        ("<answer><answer>4</answer></answer>", None),
        ("<answer>4</answer></answer>", None),
        ("<answer>4", None),
        ("4</answer>", None),
        ("", None),
    ],
)
def test_last_tagged(text, answer):
    assert last_tagged(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{4}", "4"),
        (r"\boxed{1} then \boxed {\frac{1}{2}} ok }", r"\frac{1}{2}"),
        (r"\fbox{1} \fboxed{2}", "2"),
        (r"\boxed{4", None),
        (r"\boxed4", None),
        (r"\boxed{}", ""),
        ("", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


def test_last_hashed():
    assert last_hashed("2 + 2 = 4\n#### 4\nbye") == "4"
    assert last_hashed("4") is None


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "<answer></answer>", r"\boxed{", "####", "{", "}"])
def test_a_megabyte_of_marks_is_read(piece):
    text = piece * (1_000_000 // len(piece))
    assert [(f(text) or "").strip("#") for f in (last_tagged, last_boxed, last_hashed)] == ["", "", ""]
