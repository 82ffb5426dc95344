"""Where a completion says its answer."""

from __future__ import annotations

import pytest

from seedtune.tasks.final_answer import last_boxed, last_hashed, last_marked, last_tagged


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
        (r"\boxed{4} or \boxed{5", "4"),
        ("```latex\n\\boxed{4}\n```", "4"),
        (r"`\boxed{4}` is printed by print('\\boxed{x}')", "x"),
        (r"\boxed4", None),
        (r"\boxed{}", ""),
        ("", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = 4\n#### 4", "4"),
        ("2 + 2 = 4\n#### 4 \n\n", "4"),
        ("2 + 2 = 4 #### 4", "4"),
        ("####4", "4"),
        ("#### **-1,234.5**", "-1,234.5"),
        ("#### $\\frac{1}{2}$", "$\\frac{1}{2}$"),
        ("#### 5\\text{ km}", "5\\text{ km}"),
        ("#### x = 3", "x = 3"),
        ("#### 3\n#### 4", "4"),
        ("2 + 2 = 4\n#### 4\nbye", None),
        ("#### Step 1\n2 + 2 = 4", None),
        ("#### 1. Add them\n2 + 2 = 4", None),
        ("#### 1\n2 + 2 = 4", None),
        ("so 4\n#### Conclusion", None),
        ("#### 4\n#### Check", None),
        ("#### Answer: 4", None),
        ("##### 4", None),
        ("### 4", None),
        ("### Answer\n4", None),
        ("**Answer:** 4", None),
        ("The answer is 4.", None),
        ("Final answer: 4", None),
        ("####", None),
        ("4", None),
        ("", None),
    ],
)
def test_last_hashed(text, answer):
    assert last_hashed(text) == answer


def test_words_behind_hashes_where_they_may_be_answers():
    assert last_hashed("It is\n#### Friday", words=True) == "Friday"
    assert last_hashed("#### Friday\nis it", words=True) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} <answer>2</answer>", "2"),
        (r"<answer>2</answer> \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"<answer>\boxed{3}</answer>", "3"),
        ("\\boxed{1}\n#### 4", "4"),
        ("\\boxed{1}\n#### Check\nyes", "1"),
        (r"#### <answer>5</answer>", "5"),
        ("### Answer\n4", None),
    ],
)
def test_of_several_marks_the_last(text, answer):
    assert last_marked(text) == answer


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "<answer></answer>", r"\boxed{", "####", "{", "}"])
def test_a_megabyte_of_marks_is_read(piece):
    text = piece * (1_000_000 // len(piece))
    found = [(f(text) or "").strip("#") for f in (last_tagged, last_boxed, last_hashed, last_marked)]
    assert found == [""] * 4
