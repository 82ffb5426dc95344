"""Completions that a dataset gives, in TRL's formats: prompt-completion, messages, and preferences with or without an
explicit prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import DataError
from ..tasks.base import Row, Rows
from .rows import as_conversations, is_messages, is_null, messages, of_rows

_PREFERENCE = ("chosen", "rejected")


def with_texts(rows: Rows, columns: Sequence[str], texts: Sequence[str], what: str) -> list[Row]:
    """The rows with each of the columns `texts`: `completion`, or `chosen` and `rejected`. The last assistant turn of
    `messages` becomes the completion; what `chosen` and `rejected` begin with, the prompt, where there is none (as
    TRL does). Raises DataError for rows of another format.
    """
    split = _split(columns, texts, what)
    return [split(dict(row), f"{what}, row {n}") for n, row in enumerate(rows, 1)]


def check_texts(rows: Rows, texts: Sequence[str], what: str) -> Rows:
    """The rows, with prompts that were checked, and with each text a text, or a list of messages behind messages.
    Raises DataError for rows that lack a text, or in which both texts are the same.
    """
    found = [dict(row) for row in rows]
    for column in texts:
        held = [row[column] for row in found]
        _check_there(held, column, what)
        for n, (row, text) in enumerate(zip(found, as_conversations(held, column, what), strict=True), 1):
            row[column] = text
            if not isinstance(text, str) and not is_messages(text):
                raise DataError(
                    f"{what}, row {n}: {column!r} must be text, or a list of messages with 'role' and 'content'; got "
                    f"{str(text)[:80]!r}."
                )
            if isinstance(row["prompt"], str) and not isinstance(text, str):
                raise DataError(
                    f"{what}, row {n}: {column!r} is a list of messages and 'prompt' is text: give both as messages, "
                    "or both as text."
                )
    if tuple(texts) == _PREFERENCE:
        _check_different(found, what)
    return found


def _split(columns: Sequence[str], texts: Sequence[str], what: str) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    """What makes such a row of one of the dataset's. Raises DataError where its columns are of another format."""
    if missing := [column for column in texts if column not in columns]:
        if tuple(texts) == ("completion",) and "messages" in columns and "prompt" not in columns:
            return _from_messages
        raise DataError(f"{what} has no column {missing[0]!r}; it has: {', '.join(columns)}. {_advice(columns, texts)}")
    if tuple(texts) == _PREFERENCE and "prompt" not in columns:
        return _from_implicit_prompt
    return lambda row, _: row


def _advice(columns: Sequence[str], texts: Sequence[str]) -> str:
    if tuple(texts) == _PREFERENCE:
        return "A preference has 'prompt', 'chosen' and 'rejected': rename your columns to these."
    if "text" in columns and "prompt" not in columns:
        return (
            "A whole 'text' does not say which part of it is to be learned: split it into 'prompt', which is only "
            "read, and 'completion'."
        )
    return (
        "log_likelihood is of the dataset's own completions: rename the column that holds the answer to 'completion' "
        "(text, or a list of messages), or give 'messages' that end with the assistant's."
    )


def _from_messages(row: dict[str, Any], where: str) -> dict[str, Any]:
    turns = messages(row.pop("messages"))
    if not is_messages(turns) or len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: 'messages' must be a conversation that ends with the assistant's message, which is the "
            f"completion; got {str(turns)[:80]!r}."
        )
    return {**row, "prompt": list(turns[:-1]), "completion": [turns[-1]]}


def _from_implicit_prompt(row: dict[str, Any], where: str) -> dict[str, Any]:
    """What both texts begin with is the prompt, as TRL's `extract_prompt` has it."""
    chosen, rejected = (messages(row[column]) or "" for column in _PREFERENCE)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"{where}: one of 'chosen' and 'rejected' is text, and the other a list of messages.")
    if chosen == rejected:
        raise DataError(f"{where}: 'chosen' and 'rejected' are the same: leave such rows out.")
    count = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        count += 1
    if isinstance(chosen, str) and count and chosen[count - 1] == " ":
        count -= 1  # a space belongs to the word behind it
    if not count:
        raise DataError(f"{where}: 'chosen' and 'rejected' begin differently, and there is no column 'prompt'.")
    return {**row, "prompt": chosen[:count], "chosen": chosen[count:], "rejected": rejected[count:]}


def _check_there(values: Sequence[Any], column: str, what: str) -> None:
    """Raises DataError for rows without a text, which it counts."""
    if empty := [n for n, value in enumerate(values, 1) if _is_empty(value)]:
        raise DataError(
            f"{what}: {column!r} is empty in {of_rows(empty, values)}. Of nothing there is no likelihood: leave them "
            f"out, dataset.filter(lambda row: row[{column!r}])."
        )


def _is_empty(value: Any) -> bool:
    if is_null(value) or isinstance(value, str) or not isinstance(value, Sequence):
        return is_null(value) or value == ""
    return all(
        isinstance(message, Mapping) and not (message.get("content") or message.get("tool_calls")) for message in value
    )


def _check_different(rows: Sequence[Row], what: str) -> None:
    if same := [n for n, row in enumerate(rows, 1) if row["chosen"] == row["rejected"]]:
        raise DataError(
            f"{what}: 'chosen' and 'rejected' are the same in {of_rows(same, rows)}. They say nothing of what is "
            "preferred: leave them out, dataset.filter(lambda row: row['chosen'] != row['rejected'])."
        )
