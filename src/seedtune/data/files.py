"""Files of rows: JSONL, JSON, CSV, TSV and text (all of them UTF-8), Parquet and Arrow; compressed, too."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import zstandard

from ..errors import DataError
from ..tasks.base import Row, Rows
from .rows import as_rows, check_names, is_messages

#: Formats by extension. JSON in lines is also called ndjson.
FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".feather")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

#: Byte order marks of what is not UTF-8; those of 4 bytes first, as one of 2 begins like one of them.
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def format_of(name: str) -> str | None:
    """The extension that tells a file's format, without that of a compression; None for another."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def read(path: Path) -> dict[str, Rows]:
    """The rows of a file, by split: `train`, unless it is JSON that names its splits. Raises DataError."""
    kind = format_of(path.name)
    if kind is None:
        raise DataError(
            f"{path} has the extension {path.suffix!r}; use one of {', '.join(FORMATS)}, as it is or compressed "
            f"({', '.join(COMPRESSIONS)})."
        )
    if kind == ".json":
        found = _json(path)
    elif kind in (".jsonl", ".ndjson"):
        found = {"train": _json_lines(path, _text(path))}
    elif kind in (".csv", ".tsv"):
        found = {"train": read_csv([path])}
    elif kind == ".txt":
        found = {"train": read_lines([path])}
    else:
        found = {"train": _table(path, kind)}
    for split, rows in found.items():
        if len(rows) == 0:
            where = str(path) if len(found) == 1 else f"{path}, split {split!r}"
            raise DataError(f"{where} is empty: it holds no rows.")
    return found


# --- bytes and text ---------------------------------------------------------------------------------------------------


def _bytes(path: Path) -> bytes:
    """What the file holds, decompressed."""
    try:
        data = path.read_bytes()
        match path.suffix.lower():
            case ".gz":
                return gzip.decompress(data)
            case ".bz2":
                return bz2.decompress(data)
            case ".xz":
                return lzma.decompress(data)
            case ".zst":
                return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
        return data
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, ValueError) as e:
        raise DataError(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}.") from e


def _text(path: Path) -> str:
    data = _bytes(path)
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise DataError(f"{path} is {encoding} text, as its byte order mark says: save it as UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 text ({e}): save it as UTF-8.") from None
    if "\0" in text:
        raise DataError(
            f"{path} holds zero bytes: it is no text, or UTF-16 without a byte order mark. Save it as UTF-8."
        )
    return text


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Rows]:
    """A list of objects, texts or conversations; an object of columns, or of splits; or JSONL under another name."""
    text = _text(path)
    try:
        held = json.loads(text, object_pairs_hook=_without_twice)
    except _TwiceError as e:
        raise DataError(f"{path} has an object with two values for {e}: rename one of them.") from None
    except (ValueError, RecursionError) as e:
        if text.count("\n") and "Extra data" in str(e):
            return {"train": _json_lines(path, text)}
        if not text.strip():
            return {"train": []}
        raise DataError(f"{path} is not JSON: {e}") from None
    if isinstance(held, list):
        return {"train": as_rows(held, path.name)}
    if isinstance(held, Mapping) and held:
        values = list(held.values())
        if all(isinstance(v, list) and v and all(isinstance(row, Mapping) for row in v) for v in values):
            return {str(split): as_rows(rows, f"{path.name}, split {split!r}") for split, rows in held.items()}
        if all(isinstance(v, list) for v in values):
            return {"train": as_rows(held, path.name)}
    raise DataError(
        f"{path} must hold a list of objects; it holds a {type(held).__name__} of something else. "
        'Write [{"prompt": ...}, ...] (with pandas: to_json(orient="records")), or JSONL.'
    )


def _json_lines(path: Path, text: str) -> Rows:
    found: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_twice)
        except _TwiceError as e:
            raise DataError(f"{path}, line {number} has two values for {e}: rename one of them.") from None
        except (ValueError, RecursionError) as e:
            raise DataError(f"{path}, line {number} is not JSON: {e}\n  {line[:120]}") from None
        if not (row is None or isinstance(row, Mapping | str) or is_messages(row)):
            raise DataError(f"{path}, line {number} is not an object with columns: {line[:120]}")
        found.append(row)
    return as_rows(found, path.name)


class _TwiceError(Exception):
    """A key that stands twice in an object."""


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [key for key, _ in pairs]
        raise _TwiceError(repr(next(key for key in names if names.count(key) > 1)))
    return made


# --- lines of text ----------------------------------------------------------------------------------------------------


def read_lines(paths: Sequence[Path]) -> list[Row]:
    """One prompt per line; blank lines are left out."""
    lines = (line.removesuffix("\r") for path in paths for line in _text(path).split("\n"))
    return [{"prompt": line} for line in lines if line.strip()]


# --- CSV --------------------------------------------------------------------------------------------------------------


def read_csv(paths: Sequence[Path]) -> list[Row]:
    """Rows of CSV (or TSV) files with the same columns, each named in the first line.

    A cell is the text that is written in it, and an empty one None: nothing is guessed from `NA` or `007`. Only a
    column whose every cell is a number as Python itself would write it (`7`, `-0.5`) counts as numbers, and one of
    `True` and `False` as those. The prompt stays text.
    """
    names: list[str] = []
    cells: list[list[str | None]] = []
    for path in paths:
        lines = _csv_lines(path)
        header = _header(path, next(lines, (0, []))[1])
        if names and header and header != names:
            raise DataError(f"{path} has the columns {', '.join(header)}, unlike {paths[0]}: {', '.join(names)}.")
        names = names or header
        for number, line in lines:
            if len(line) > len(names):
                raise DataError(
                    f"{path}, line {number} has {len(line)} cells for {len(names)} columns: put cells that hold the "
                    f"delimiter in quotes.\n  {str(line)[:120]}"
                )
            cells.append([cell or None for cell in line] + [None] * (len(names) - len(line)))
    columns = [
        list(column) if name == "prompt" else _typed(column)
        for name, column in zip(names, zip(*cells, strict=True), strict=False)
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines of cells, with the number of the line that each ends on; blank ones are left out."""
    text = _text(path)
    before = csv.field_size_limit(2**31 - 1)  # prompts are longer than the 128 KB that it allows
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True)
        yield from ((reader.line_num, line) for line in reader if line)
    except csv.Error as e:
        raise DataError(f"{path}, line {reader.line_num} cannot be read as CSV: {e}.") from None
    finally:
        csv.field_size_limit(before)


def _delimiter(path: Path, text: str) -> str:
    """A comma; a tab in TSV; what a first line without a comma has of semicolons and tabs."""
    if format_of(path.name) == ".tsv":
        return "\t"
    first = text.split("\n", 1)[0]
    return next((mark for mark in ",;\t" if mark in first), ",")


def _header(path: Path, names: Sequence[str]) -> list[str]:
    """The names of the columns; those without are called as pandas calls them."""
    found = [name or f"Unnamed: {n}" for n, name in enumerate(names)]
    check_names(found, str(path))
    return found


_WHOLE, _DECIMAL = re.compile(r"-?[1-9]\d{0,18}|0"), re.compile(r"-?\d+\.\d+(e[-+]\d+)?|-?\d+e[-+]\d+")


def _typed(column: Sequence[str | None]) -> list[Any]:
    """As numbers or truth values, where that loses nothing of what is written; else as text."""
    known = [cell for cell in column if cell is not None]
    if known and all(_WHOLE.fullmatch(cell) for cell in known):
        return [None if cell is None else int(cell) for cell in column]
    if known and all(_is_decimal(cell) or _WHOLE.fullmatch(cell) for cell in known):
        return [None if cell is None else float(cell) for cell in column]
    if known and set(known) <= {"True", "False"}:
        return [None if cell is None else cell == "True" for cell in column]
    return list(column)


def _is_decimal(cell: str) -> bool:
    return bool(_DECIMAL.fullmatch(cell)) and math.isfinite(float(cell)) and repr(float(cell)) == cell


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(path: Path, kind: str) -> Rows:
    """A Parquet or Arrow file."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        source: Any = str(path) if path.suffix.lower() == kind else pyarrow.BufferReader(_bytes(path))
        if kind == ".parquet":
            names = pyarrow.parquet.read_schema(source).names
        else:
            table = _arrow(pyarrow.memory_map(source) if isinstance(source, str) else source)
            names = table.column_names
        check_names(names, str(path))
        if kind != ".parquet":
            return datasets.Dataset(table)
        if isinstance(source, str):
            return datasets.Dataset.from_parquet(source)
        return datasets.Dataset(pyarrow.parquet.read_table(source))
    except DataError:
        raise
    except Exception as e:
        raise DataError(f"{path} cannot be read as {kind[1:].upper()}: {e.__cause__ or e}") from e


def _arrow(file: Any) -> Any:
    """The table of either kind of Arrow file: a stream, as `datasets` writes it, or one with random access."""
    import pyarrow

    try:
        return pyarrow.ipc.open_file(file).read_all()
    except pyarrow.ArrowInvalid:
        file.seek(0)
        return pyarrow.ipc.open_stream(file).read_all()
