"""A user's data: a JSONL, JSON, CSV or Parquet file, a folder or Hub id that `datasets` reads, or rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .base import Row, Rows


def load(name: str, split: str = "train", config: str | None = None) -> Rows:
    """Rows of a local file or folder, or of a dataset on the Hub. Raises DataError."""
    path = Path(name).expanduser()
    if path.is_file():
        if split != "train":
            raise DataError(
                f"{name} is a file, and a file has no split {split!r}: leave the split out, or name a file."
            )
        return _read_file(path)
    if path.suffix in {".jsonl", ".json", ".csv", ".parquet"}:
        raise DataError(f"there is no file {name!r} (looked in {Path.cwd()}). Check dataset_name.")
    try:
        import datasets

        return datasets.load_dataset(name, config, split=split)  # type: ignore[no-any-return]
    except Exception as e:
        where = "this folder" if path.exists() else "no such local file or folder, and the Hub"
        raise DataError(
            f"cannot load dataset {name!r}, split {split!r}: {where} said: {type(e).__name__}: {e}\n"
            "Give a JSONL, CSV or Parquet file, a folder, or a Hub id; for a gated dataset run `hf auth login` first."
        ) from e


def _read_file(path: Path) -> Rows:
    if path.suffix == ".jsonl":
        return _read_jsonl(path)
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as e:
            raise DataError(f"{path} is not JSON: {e}") from None
        if not isinstance(rows, list):
            raise DataError(f"{path} must hold a list of objects; it holds a {type(rows).__name__}. Try JSONL.")
        return rows
    if path.suffix in {".csv", ".parquet"}:
        import datasets

        reader = datasets.Dataset.from_csv if path.suffix == ".csv" else datasets.Dataset.from_parquet
        try:
            return reader(str(path))  # type: ignore[no-any-return]
        except Exception as e:
            raise DataError(f"{path} cannot be read as {path.suffix[1:].upper()}: {e.__cause__ or e}") from e
    raise DataError(f"{path} has ending {path.suffix!r}; use .jsonl, .json, .csv or .parquet.")


def _read_jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 text ({e}): save it as UTF-8.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise DataError(f"{path}, line {number} is not JSON: {e}\n  {line[:120]}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not an object with columns: {line[:120]}")
        rows.append(row)
    return rows


def columns_of(rows: Rows) -> list[str]:
    """The columns of a dataset (of its first row, where it is a list)."""
    names = getattr(rows, "column_names", None)
    return list(names) if names is not None else list(rows[0])


def check(rows: Any, what: str) -> Rows:
    """`rows` as a sequence of mappings with a `prompt` column; raises DataError."""
    if isinstance(rows, (str, Mapping)) or not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise DataError(
            f"{what} must be a list of dicts or a datasets.Dataset (not streaming), got {type(rows).__name__}."
        )
    if len(rows) == 0:
        raise DataError(f"{what} is empty: there is nothing to train on. Check the file, or the split.")
    if not isinstance(rows[0], Mapping):
        raise DataError(f"{what} must hold rows with columns (dicts); its first row is a {type(rows[0]).__name__}.")
    columns = columns_of(rows)
    if "prompt" not in columns:
        raise DataError(
            f"{what} has no column 'prompt'; it has: {', '.join(columns)}. "
            "Rename the column that holds the question, or the list of messages, to 'prompt'."
        )
    if not hasattr(rows, "column_names"):
        for n, row in enumerate(rows):
            if different := set(columns) ^ set(row):
                which = "lacks" if different - set(row) else "has"
                raise DataError(f"{what}, row {n + 1} {which} column {sorted(different)[0]!r}, unlike row 1.")
    for n in range(min(len(rows), 10_000)):
        _check_prompt(rows[n]["prompt"], f"{what}, row {n + 1}")
    return rows  # type: ignore[no-any-return]


def _check_prompt(prompt: Any, where: str) -> None:
    if isinstance(prompt, str) and prompt:
        return
    if (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and all(isinstance(m, Mapping) and "role" in m and "content" in m for m in prompt)
    ):
        return
    raise DataError(
        f"{where}: 'prompt' must be text, or a list of messages with 'role' and 'content'; got {str(prompt)[:80]!r}."
    )
