"""Rows as users hold them: lists, columns, tables, and `datasets`, streamed or formatted; and their prompts."""

from __future__ import annotations

import ast
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import Any

from ..errors import DataError
from ..tasks.base import Row, Rows

log = logging.getLogger(__name__)

#: More rows than these are not read from a source that does not say how many it has: it may have no end.
MOST_STREAMED = 100_000
#: Formats of `datasets` in which a row is a table.
_TABLES = ("pandas", "polars", "arrow")
#: Columns that hold a question under another name, the likeliest first.
_LIKE_PROMPT = (
    "prompts question questions problem query instruction instructions input inputs messages conversation "
    "conversations chat text"
).split()


def as_rows(data: Any, what: str) -> Rows:
    """`data` as a sequence of mappings; `what` names it in messages. Texts and conversations count as prompts.

    What has no length (a stream, an iterator) is read to its end, and what is computed on access (`set_transform`) is
    computed once: an iteration may draw any prompt again. Rows without any value are left out, which is logged. Raises
    DataError.
    """
    if isinstance(data, str | bytes | os.PathLike):
        raise DataError(
            f"{what} must be a list of dicts or a datasets.Dataset, got {type(data).__name__}: for a file, a folder or "
            "a dataset of the Hub use seedtune.data.load(...), or set dataset_name."
        )
    if isinstance(data, Mapping):
        data = _from_columns(data, what)
    elif hasattr(data, "with_format"):  # of `datasets`
        data = _from_datasets(data, what)
    elif hasattr(data, "iterrows") and hasattr(data, "to_dict"):  # pandas
        data = _from_pandas(data, what)
    elif hasattr(data, "to_pylist") or hasattr(data, "to_dicts"):  # pyarrow, polars
        check_names(getattr(data, "column_names", None) or getattr(data, "columns", []), what)
        data = data.to_pylist() if hasattr(data, "to_pylist") else data.to_dicts()
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        data = list(data) if isinstance(data, Iterable) else [data[n] for n in range(len(data))]
    elif isinstance(data, Iterable) and not isinstance(data, Set):  # sets have no order
        data = _stream(data, what)
    else:
        raise _no_rows(data, what)
    return _without_empty(data, what) if hasattr(data, "column_names") else _mappings(data, what)


def _no_rows(data: Any, what: str) -> DataError:
    return DataError(
        f"{what} must be a list of dicts, a datasets.Dataset, a table (pandas, polars, pyarrow) or an iterator over "
        f"rows, got {type(data).__name__}."
    )


def _from_columns(data: Mapping[str, Any], what: str) -> list[Row]:
    """The rows of a dict of lists."""
    values = list(data.values())
    if values and all(hasattr(v, "column_names") or _holds_rows(v) for v in values):
        names = ", ".join(map(str, data))
        raise DataError(
            f"{what} has several splits ({names}): give one of them, for example data[{next(iter(data))!r}]."
        )
    if not values or any(isinstance(v, str | Mapping) or not hasattr(v, "__len__") for v in values):
        raise DataError(
            f"{what} must be a list of dicts (rows), or a dict of lists of one length (columns); got one dict."
        )
    lengths = {str(name): len(column) for name, column in data.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{what} has columns of different lengths: {lengths}.")
    return [dict(zip(data, row, strict=True)) for row in zip(*values, strict=True)]


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Mapping) and "prompt" in value[0]


def _from_datasets(data: Any, what: str) -> Any:
    """Of `datasets`: with rows that are dicts of the columns in its format, the prompt in no format."""
    if not hasattr(data, "format"):  # streamed
        return _stream(data.with_format(None), what)
    columns = list(data.format["columns"] or data.column_names)
    kind, options = data.format["type"], data.format["format_kwargs"]
    if kind == "custom":
        return [data[n] for n in range(len(data))]
    if not data.format["output_all_columns"] and set(columns) < set(data.column_names):
        data = data.select_columns(columns)
    others = [name for name in columns if name != "prompt"]
    if kind is None or kind in _TABLES or not others:
        return data.with_format(None)
    return data.with_format(kind, columns=others, output_all_columns=True, **options)  # messages are no arrays


def _from_pandas(data: Any, what: str) -> list[Any]:
    """Rows of a DataFrame, with None for what is missing."""
    check_names(data.columns, what)
    return data.astype(object).where(data.notna(), None).to_dict("records")


def check_names(names: Iterable[Any], what: str) -> None:
    known: set[Any] = set()
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"{what} has a column {name!r}, whose name is no text: name the columns.")
        if name in known:
            raise DataError(f"{what} has two columns called {name!r}: rename one of them.")
        known.add(name)


def _stream(data: Iterable[Any], what: str) -> list[Any]:
    """All rows of what does not say how many it has."""
    rows = list(islice(iter(data), MOST_STREAMED + 1))
    if len(rows) > MOST_STREAMED:
        raise DataError(
            f"{what} is a stream of more than {MOST_STREAMED:,} rows, perhaps without an end, and a run draws its "
            "prompts from all rows: take some of them, for example dataset.take(10_000), or give a list."
        )
    log.info("%s: %d rows were read from a stream.", what, len(rows))
    return rows


def _mappings(items: list[Any], what: str) -> list[Row]:
    """Items as rows: a text or a conversation is a prompt. Those without any value are left out."""
    rows: list[Row] = []
    for number, item in enumerate(items, 1):
        if isinstance(item, Mapping):
            if not all(map(is_null, item.values())):
                rows.append(item)
        elif isinstance(item, str) or is_messages(item):
            rows.append({"prompt": item})
        elif not is_null(item):
            raise DataError(f"{what} must hold rows with columns (dicts); row {number} is a {type(item).__name__}.")
    check_names(rows[0] if rows else (), what)
    _note_dropped(len(items) - len(rows), len(items), what)
    return rows


def _without_empty(data: Any, what: str) -> Any:
    """A `datasets.Dataset` without the rows that hold nothing at all."""
    if "prompt" not in data.column_names or not data.data.column("prompt").null_count:
        return data
    prompts = _column(data, "prompt")
    empty = {n for n, prompt in enumerate(prompts) if is_null(prompt) and all(map(is_null, data[n].values()))}
    _note_dropped(len(empty), len(data), what)
    return data.select([n for n in range(len(data)) if n not in empty]) if empty else data


def _column(rows: Any, name: str) -> list[Any]:
    """The values of one column, in no format."""
    if hasattr(rows, "select_columns"):
        return list(rows.select_columns([name]).with_format(None)[:][name])
    return [row[name] for row in rows]


def _note_dropped(count: int, total: int, what: str) -> None:
    if count:
        log.warning(f"{what}: {count} of {total} rows hold nothing at all and were left out.")


def is_null(value: Any) -> bool:
    """Whether it is None, or the NaN that tables have in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


# --- prompts ----------------------------------------------------------------------------------------------------------


def of_rows(numbers: Sequence[int], rows: Sequence[Any]) -> str:
    """How many of all rows these are, and the first of them: `7 of 100 rows: 1, 4, 5, 9, 12, ...`."""
    return f"{len(numbers)} of {len(rows)} rows: {', '.join(map(str, numbers[:5]))}{', ...' * (len(numbers) > 5)}"


def check_prompts(rows: Rows, columns: Sequence[str], what: str) -> Rows:
    """The rows, with every prompt a text or a list of messages. Conversations that are held otherwise (as JSON in a
    cell, as arrays) become lists. Raises DataError for rows without a prompt, and for other prompts.
    """
    if "prompt" not in columns:
        raise DataError(f"{what} has no column 'prompt'; it has: {', '.join(columns)}. {_advice(columns)}")
    held = _column(rows, "prompt")
    missing = [n for n, prompt in enumerate(held, 1) if is_null(prompt)]
    if missing:
        raise DataError(
            f"{what}: 'prompt' must be text, or a list of messages with 'role' and 'content'; it is empty (null) in "
            f"{of_rows(missing, held)}. Leave them out: dataset.filter(lambda row: row['prompt'] is not None)."
        )
    prompts = as_conversations(held, "prompt", what)
    for number, prompt in enumerate(prompts, 1):
        if not (isinstance(prompt, str) and prompt) and not is_messages(prompt):
            raise DataError(
                f"{what}, row {number}: 'prompt' must be text, or a list of messages with 'role' and 'content'; got "
                f"{str(prompt)[:80]!r}.{_shared_gpt(prompt)}"
            )
    if all(prompt is before for prompt, before in zip(prompts, held, strict=True)):
        return rows
    return [{**row, "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]


def is_messages(value: Any) -> bool:
    """Whether it is a list of messages."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(m, Mapping) and "role" in m and "content" in m for m in value)
    )


def messages(prompt: Any) -> Any:
    """A conversation that is an array, or a dict of columns, as a list of messages; anything else as it is."""
    if not isinstance(prompt, str) and hasattr(prompt, "tolist"):  # numpy
        return prompt.tolist()
    if isinstance(prompt, Mapping) and set(prompt) >= {"role", "content"}:
        columns = [list(v) if isinstance(v, Sequence) and not isinstance(v, str) else None for v in prompt.values()]
        if all(column is not None and len(column) == len(columns[0] or ()) for column in columns):
            return [dict(zip(prompt, values, strict=True)) for values in zip(*columns, strict=True)]
    return prompt


def as_conversations(held: Sequence[Any], column: str, what: str) -> list[Any]:
    """The values of a column, with conversations as lists of messages: those that are held otherwise (see `messages`),
    and, where every one was written as text (JSON, or as Python prints it), these.
    """
    values = [messages(value) for value in held]
    if not all(isinstance(value, str) and value.lstrip().startswith("[") for value in values):
        return values
    found = [_literal(value) for value in values]
    if not all(is_messages(value) for value in found):
        return values
    log.warning(f"{what}: {column!r} holds conversations written as text; they are read as lists of messages.")
    return found


def _literal(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            pass
    return None


def _advice(columns: Sequence[str]) -> str:
    """Which column is likely to hold the prompt, and how to say so."""
    plain = {name.strip().lower(): name for name in reversed(columns)}
    near = next((plain[name] for name in ("prompt", *_LIKE_PROMPT) if name in plain), None)
    if near is None:
        return "Rename the column that holds the question, or the list of messages, to 'prompt'."
    turns = " (without the answer at its end)" if near.strip().lower() in ("messages", "conversations") else ""
    return (
        f"If {near!r} holds the question{turns}, rename it: dataset.rename_column({near!r}, 'prompt'), or set "
        f"dataset_prompt_column: {near}."
    )


def _shared_gpt(prompt: Any) -> str:
    """How to convert messages of another kind."""
    first = prompt[0] if isinstance(prompt, Sequence) and not isinstance(prompt, str) and len(prompt) else prompt
    if isinstance(first, Mapping) and {"from", "value"} <= set(first):
        return " Messages with 'from' and 'value' are ShareGPT's: write 'role' and 'content' instead."
    if isinstance(prompt, Mapping) and "role" in prompt:
        return " Put the message into a list."
    return ""
