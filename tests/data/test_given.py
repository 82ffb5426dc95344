"""Completions of a dataset, in TRL's formats, and rows that have none."""

from __future__ import annotations

import datasets
import pytest

from seedtune.data import dataset
from seedtune.errors import DataError

ASK = [{"role": "user", "content": "hi"}]
YES, NO = [{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]
COMPLETION, PREFERENCE = ("completion",), ("chosen", "rejected")


def check(rows, texts=COMPLETION):
    return dataset.check(rows, "train_dataset", texts)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b"},
        {"prompt": ASK, "completion": YES},
        {"prompt": ASK, "completion": "yes"},
    ],
)
def test_prompt_and_completion_are_taken_as_they_are(row):
    assert check([{**row, "other": 1}]) == [{**row, "other": 1}]
    assert check(datasets.Dataset.from_list([row])) == [row]


def test_the_last_turn_of_messages_is_the_completion():
    rows = check([{"messages": [*ASK, *NO, *ASK, *YES], "k": 1}])
    assert rows == [{"prompt": [*ASK, *NO, *ASK], "completion": YES, "k": 1}]


def test_what_both_texts_begin_with_is_the_prompt():
    rows = check([{"chosen": [*ASK, *YES], "rejected": [*ASK, *NO]}], PREFERENCE)
    assert rows == [{"prompt": ASK, "chosen": YES, "rejected": NO}]
    rows = check([{"chosen": "The sky is blue.", "rejected": "The sky is green."}], PREFERENCE)
    assert rows == [{"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}]


def test_conversations_that_are_written_as_text_are_read():
    rows = check([{"prompt": '[{"role": "user", "content": "hi"}]', "completion": str(YES)}])
    assert rows == [{"prompt": ASK, "completion": YES}]


@pytest.mark.parametrize(
    ("rows", "texts", "message"),
    [
        ([{"prompt": "a", "answer": "b"}], COMPLETION, "no column 'completion'; it has: prompt, answer.*rename"),
        ([{"text": "a whole text"}], COMPLETION, "does not say which part"),
        ([{"completion": "b"}], COMPLETION, "no column 'prompt'"),
        ([{"prompt": "a", "completion": ""}] * 2, COMPLETION, "'completion' is empty in 2 of 2 rows: 1, 2"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}], COMPLETION, "in 1 of 2 rows: 2"),
        ([{"prompt": ASK, "completion": []}], COMPLETION, "is empty"),
        ([{"prompt": ASK, "completion": [{"role": "assistant", "content": ""}]}], COMPLETION, "is empty"),
        ([{"prompt": "a", "completion": 3}], COMPLETION, "row 1: 'completion' must be text"),
        ([{"prompt": "a", "completion": YES}], COMPLETION, "list of messages and 'prompt' is text"),
        ([{"messages": [*ASK]}], COMPLETION, "ends with the assistant's message"),
        ([{"prompt": "a", "chosen": "b"}], PREFERENCE, "no column 'rejected'.*'prompt', 'chosen' and 'rejected'"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], PREFERENCE, "are the same in 1 of 1 rows: 1"),
        ([{"chosen": "b", "rejected": "b"}], PREFERENCE, "are the same"),
        ([{"chosen": "b", "rejected": "c"}], PREFERENCE, "begin differently"),
        ([{"chosen": "b", "rejected": YES}], PREFERENCE, "one of 'chosen' and 'rejected' is text"),
    ],
)
def test_rows_without_a_text_are_refused(rows, texts, message):
    with pytest.raises(DataError, match=message):
        check(rows, texts)
