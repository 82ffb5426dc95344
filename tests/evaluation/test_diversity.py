"""How different the answers to different prompts are, and what is found where they are not."""

from __future__ import annotations

import pytest

from seedtune.evaluation.diversity import answers, diversity
from seedtune.evaluation.hacking import same_answers
from seedtune.training.guard import Guard


def row(prompt, completion, member=0, **more):
    return {"prompt": prompt, "completion": completion, "member": member, **more}


def test_the_share_of_different_answers():
    assert diversity([row("a", "Yes."), row("b", "yes"), row("c", "No"), row("d", "maybe")]) == 0.75
    assert diversity([row("a", "yes"), row("b", "yes")]) == 0.5
    assert diversity([row("a", "yes"), row("a", "no")]) is None, "one prompt"
    assert diversity([]) is None


def test_of_several_completions_of_a_prompt_the_commonest_counts():
    rows = [row("a", "1"), row("a", "2"), row("a", "2"), row("b", "2"), row("b", "3"), row("b", "2")]
    assert list(answers(rows).values()) == ["2", "2"]
    assert diversity(rows) == 0.5


def test_answers_are_those_that_the_reward_has_read():
    rows = [row("a", "I think 5", answer="5"), row("b", "surely 5", answer="5"), row("c", "none", answer=None)]
    assert list(answers(rows).values()) == ["5", "5", "none"]
    assert diversity(rows) == pytest.approx(2 / 3)


def test_members_are_taken_one_by_one():
    rows = [row("a", "x", 0), row("b", "y", 0), row("a", "x", 1), row("b", "x", 1), row("a", "x", 2)]
    assert diversity(rows) == 0.75, "1 and 1/2; the third member has answered one prompt"


def test_same_answers_are_found_behind_different_words():
    before = [row(p, f"it is {p}", answer=p) for p in "abcd"]
    after = [row(p, f"for {p} it is 7", answer="7") for p in "abcd"]
    assert [str(found) for found in same_answers(before, after)] == [
        "4 of 4 different prompts get the same answer: '7'"
    ]
    without = [{k: v for k, v in r.items() if k != "answer"} for r in after]
    assert same_answers(before, without) == []


def test_the_guard_counts_a_collapse_as_divergence():
    guard = Guard(1.0)
    assert guard.evaluation({"eval/reward": 0.0}, 1) is None
    assert "the same answer" in guard.evaluation({"eval/reward": 0.0, "eval/collapsed": 1.0}, 1)
