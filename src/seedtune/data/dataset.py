"""Datasets by name: a file or a folder, or what `datasets` finds on the Hub; and rows that are fit to train on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..tasks.base import Row, Rows
from ..utils.paths import AnyPath, local_path
from . import files
from .given import check_texts, with_texts
from .rows import as_rows, check_prompts

log = logging.getLogger(__name__)

#: Columns whose images TRL shows the model.
_SHOWN_BY_TRL = ("image", "images")


def load(name: AnyPath, split: str = "train", config: str | None = None) -> Rows:
    """Rows of `name`: a local file or folder (of data files, or one that `save_to_disk` wrote), or a dataset on the
    Hub, of which `config` names a configuration. `split` may be a slice, as `train[:100]`. Raises DataError.
    """
    name, path = os.fspath(name), local_path(name)
    if path.is_file():
        found = files.read(path)
        if list(found) == ["train"] and split.split("[")[0] != "train":
            raise DataError(
                f"{name} is a file, and a file has no split {split!r}: leave the split out, or give another file."
            )
        return _pick(found, split, name)
    if path.is_dir():
        return _folder(path, split, config)
    if files.format_of(path.name):
        raise DataError(f"there is no file {name!r} (looked in {Path.cwd()}). Check dataset_name.")
    import datasets

    with _refusing(name, split, "there is no such local file or folder, and the Hub"):
        return datasets.load_dataset(name, config, split=split)


def names_a_file(split: str) -> bool:
    """Whether what stands for a split is a file or a folder instead."""
    return files.format_of(split) is not None or split.startswith((".", "~")) or os.sep in split


def with_prompt(rows: Rows, column: str | None, what: str) -> Rows:
    """The rows with `column` called `prompt` (None: as they are). Raises DataError."""
    if column in (None, "prompt"):
        return rows
    columns = columns_of(rows)
    if column not in columns or "prompt" in columns:
        why = "it has a column 'prompt' already" if "prompt" in columns else f"it has: {', '.join(columns)}"
        raise DataError(f"dataset_prompt_column: {column} cannot become the prompt of {what}: {why}.")
    if hasattr(rows, "rename_column"):
        return rows.rename_column(column, "prompt")
    return [{"prompt" if key == column else key: value for key, value in row.items()} for row in rows]


def columns_of(rows: Rows) -> list[str]:
    """The columns of a dataset (of its first row, where it is a list)."""
    names = getattr(rows, "column_names", None)
    return list(names) if names is not None else list(rows[0])


def check(rows: Any, what: str, texts: Sequence[str] = ()) -> Rows:
    """`rows`, as users hold them (see `as_rows`), as a sequence of mappings with a `prompt`, and with the columns
    `texts`, which hold given completions (see `with_texts`). Raises DataError.
    """
    found = as_rows(rows, what)
    if len(found) == 0:
        raise DataError(f"{what} is empty: it has no rows. Check the file, or the split.")
    columns = columns_of(found)
    if not hasattr(found, "column_names"):
        for number, row in enumerate(found, 1):
            if different := set(columns) ^ set(row):
                which = "lacks" if different - set(row) else "has"
                raise DataError(
                    f"{what}, row {number} {which} column {sorted(different, key=str)[0]!r}, unlike row 1: give all "
                    "rows the same columns (null, or None, where there is nothing)."
                )
    if texts:
        found = with_texts(found, columns, texts, what)
        columns = columns_of(found)
    found = check_prompts(found, columns, what)
    if shown := [name for name in _SHOWN_BY_TRL if name in columns]:
        log.warning(f"{what}: column {shown[0]!r} is for reward functions only: the model reads text, no images.")
    return check_texts(found, texts, what) if texts else found


def episodes(count: int | None) -> Rows:
    """Rows for environments that have all the data: prompts are what `reset` says (TRL); `count`: 64, unless given."""
    return [{"prompt": [{"role": "user", "content": ""}]} for _ in range(count or 64)]


# --- folders and splits -----------------------------------------------------------------------------------------------


def _folder(path: Path, split: str, config: str | None) -> Rows:
    import datasets

    with _refusing(str(path), split, "the folder"):
        if (path / "dataset_dict.json").is_file():
            return _pick(datasets.load_from_disk(str(path)), split, str(path))
        if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
            saved = datasets.load_from_disk(str(path))
            return _pick({str(saved.split or "train"): saved}, split, str(path))
        builder = datasets.load_dataset_builder(str(path), config)
        named: Mapping[Any, Sequence[str]] = getattr(builder.config, "data_files", None) or {}
        paths = {str(name): [Path(file) for file in of_split] for name, of_split in named.items()}
        reader = _TEXT_READERS.get(builder.name)
        if reader and all(file.is_file() for of_split in paths.values() for file in of_split):
            return _pick({name: reader(of_split) for name, of_split in paths.items()}, split, str(path))
        return datasets.load_dataset(str(path), config, split=split)


#: Formats that `datasets` would guess types in, or call otherwise: their names there, and who reads them.
_TEXT_READERS: dict[str, Callable[[Sequence[Path]], list[Row]]] = {"csv": files.read_csv, "text": files.read_lines}


def _pick(splits: Mapping[str, Rows], split: str, where: str) -> Rows:
    """The rows of a split, of a slice of it, or of a sum of such. The only split there is counts as `train`."""
    if len(splits) == 1:
        splits = {"train": next(iter(splits.values())), **splits}
    if split in splits:
        return splits[split]
    import datasets

    sizes = {name: len(rows) for name, rows in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as e:
        raise DataError(f"{where} has no split {split!r}; it has: {', '.join(splits)}. ({e})") from None
    ranges = [(splits[part.splitname], range(sizes[part.splitname])[part.from_ : part.to]) for part in parts]
    if all(hasattr(rows, "select") for rows, _ in ranges):
        return datasets.concatenate_datasets([rows.select(chosen) for rows, chosen in ranges])  # type: ignore[attr-defined]  # of datasets
    return [rows[n] for rows, chosen in ranges for n in chosen]


@contextmanager
def _refusing(name: str, split: str, where: str) -> Iterator[None]:
    """What `datasets` raises becomes a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as e:
        raise DataError(
            f"cannot load dataset {name!r}, split {split!r}: {where} gave {type(e).__name__}: {e}\n"
            f"Give a file ({', '.join(files.FORMATS)}), a folder, or a Hub id; for a gated dataset run `hf auth login` "
            "first."
        ) from e
