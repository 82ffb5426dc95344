"""Data as users bring them: files, folders, tables, streams; read as they are, or refused with the reason."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
from itertools import count

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from datasets import Dataset, DatasetDict, IterableDataset

from runs import quiet_length, trainer
from seedtune.cli.main import main
from seedtune.data import dataset, rows
from seedtune.data.dataset import check, columns_of, load
from seedtune.errors import DataError

ROWS = [{"prompt": "one", "answer": "1"}, {"prompt": "two", "answer": "2"}]
TALK = [{"role": "user", "content": "hi"}]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
TEXTS = {
    ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    ".ndjson": "".join(json.dumps(row) + "\r\n" for row in ROWS),
    ".json": json.dumps(ROWS),
    ".csv": 'prompt,answer\n"one","1"\ntwo,2\n',
    ".tsv": "prompt\tanswer\none\t1\ntwo\t2\n",
}


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


def plain(found):
    return [{key: str(value) for key, value in row.items()} for row in found]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", COMPRESS)
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_files_with_and_without_a_byte_order_mark_and_compressed(tmp_path, kind, packed, mark):
    file = tmp_path / f"d.v2{kind.upper() if packed else kind}{packed}"
    file.write_bytes(COMPRESS[packed](mark + TEXTS[kind].encode()))
    assert plain(check(load(file), "it")) == ROWS


@pytest.mark.parametrize("packed", COMPRESS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_of_text_are_prompts(tmp_path, packed, mark):
    (tmp_path / f"d.txt{packed}").write_bytes(COMPRESS[packed](f"{mark}one\r\n\n \ntwo\x85\u2028too".encode()))
    assert load(tmp_path / f"d.txt{packed}") == [{"prompt": "one"}, {"prompt": "two\x85\u2028too"}]


@pytest.mark.parametrize("kind", [*TEXTS, ".txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_other_encodings_are_named(tmp_path, kind, encoding):
    text = TEXTS.get(kind, "one\ntwo\n").replace("one", "é")
    (tmp_path / f"d{kind}").write_bytes(text.encode(encoding))
    says = {"utf-16": "UTF-16 text", "utf-32": "UTF-32 text", "latin-1": "is not UTF-8 text"}
    with pytest.raises(DataError, match=says.get(encoding, "UTF-16|UTF-8") + ".*save it as UTF-8"):
        load(tmp_path / f"d{kind}")


def test_tables_in_files(tmp_path):
    made = Dataset.from_list(ROWS)
    made.to_parquet(str(tmp_path / "d.parquet"))
    (tmp_path / "d.parquet.gz").write_bytes(gzip.compress((tmp_path / "d.parquet").read_bytes()))
    table = made.data.table
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as f, pa.ipc.new_stream(f, table.schema) as writer:
        writer.write_table(table)
    for name in ("d.arrow", "d.feather"):
        with pa.OSFile(str(tmp_path / name), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
            writer.write_table(table)
    for name in ("d.parquet", "d.parquet.gz", "stream.arrow", "d.arrow", "d.feather"):
        assert plain(check(load(tmp_path / name), "it")) == ROWS, name


@pytest.mark.parametrize("kind", [*TEXTS, ".txt", ".parquet", ".arrow"])
def test_empty_files(tmp_path, kind):
    (tmp_path / f"d{kind}").write_bytes(b"")
    with pytest.raises(DataError, match=r"is empty|cannot be read as"):
        load(tmp_path / f"d{kind}")
    if kind in TEXTS:
        head = {".csv": "prompt,answer\n", ".tsv": "prompt\tanswer\n", ".json": "[]"}.get(kind, "\n\n")
        (tmp_path / f"d{kind}").write_text(head)
        with pytest.raises(DataError, match=f"d{kind} is empty"):
            load(tmp_path / f"d{kind}")


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
def test_damaged_archives(tmp_path, packed):
    whole = COMPRESS[packed](TEXTS[".jsonl"].encode() * 50)
    for damaged in (whole[: len(whole) // 2], b"no archive"):
        (tmp_path / f"d.jsonl{packed}").write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot be read|is not JSON|is empty"):
            load(tmp_path / f"d.jsonl{packed}")


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ({"prompt": ["one", "two"], "answer": ["1", "2"]}, ROWS),
        (["one", "two"], [{"prompt": "one"}, {"prompt": "two"}]),
        ([TALK, TALK], [{"prompt": TALK}, {"prompt": TALK}]),
        ([None, *ROWS, {"prompt": None, "answer": None}], ROWS),
        ({"train": ROWS, "test": ROWS[:1]}, ROWS),
        ({"data": ROWS}, ROWS),
    ],
)
def test_what_json_may_hold(tmp_path, held, found):
    (tmp_path / "d.json").write_text(json.dumps(held))
    assert load(tmp_path / "d.json") == found


def test_json_that_names_its_splits_and_json_in_lines(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert load(tmp_path / "d.json", "test") == ROWS[:1]
    assert load(tmp_path / "d.json", "train[1:]+test") == [ROWS[1], ROWS[0]]
    with pytest.raises(DataError, match="has no split 'validation'; it has: train, test"):
        load(tmp_path / "d.json", "validation")
    (tmp_path / "lines.json").write_text(TEXTS[".jsonl"])
    assert load(tmp_path / "lines.json") == ROWS
    assert load(tmp_path / "lines.json", "train[:50%]") == ROWS[:1]
    (tmp_path / "d.jsonl").write_text('"one"\nnull\n' + json.dumps(TALK) + "\n")
    assert load(tmp_path / "d.jsonl") == [{"prompt": "one"}, {"prompt": TALK}]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("d.json", '{"prompt": "a"}', r"must hold a list of objects"),
        ("d.json", '{"prompt": {"0": "a"}, "answer": {"0": "b"}}', r'to_json\(orient="records"\)'),
        ("d.json", '{"prompt": ["a", "b"], "answer": ["c"]}', "different lengths: .*'prompt': 2, 'answer': 1"),
        ("d.json", '[{"prompt": "a"}, 5]', "row 2 is a int"),
        ("d.json", '[{"prompt": "a", "prompt": "b"}]', "two values for 'prompt'"),
        ("d.json", "[" * 100_000, "is not JSON"),
        ("d.jsonl", '{"prompt": "a"}\n{"x": {"y": 1, "y": 2}}', "line 2 has two values for 'y'"),
        ("d.csv", "prompt,answer,answer\na,b,c\n", "two columns called 'answer'"),
        ("d.csv", "prompt,answer\na,b,c\n", "line 2 has 3 cells for 2 columns"),
        ("d.csv", 'prompt,answer\na,"b\n', "cannot be read as CSV"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        load(tmp_path / name)


# --- CSV --------------------------------------------------------------------------------------------------------------


def test_cells_stay_what_is_written_in_them(tmp_path):
    (tmp_path / "d.csv").write_text(
        "prompt,code,answer,whole,number,truth,price,day,mixed,gap,,id\n"
        "NA,007,NA,7,0.5,True,2.50,2026-01-02,1,,x,12345678901234567890123\n"
        "null,12,null,-3,1,False,3.00,None,nan,4,y,1\n"
        '5,13,"NaN, not",0,-1e-05,True,1.10,NULL,inf,,"z\n""z""",2\n'
        "\n"
    )
    found = load(tmp_path / "d.csv")
    assert [row["prompt"] for row in found] == ["NA", "null", "5"]
    assert [row["code"] for row in found] == ["007", "12", "13"]
    assert [row["answer"] for row in found] == ["NA", "null", "NaN, not"]
    assert [row["whole"] for row in found] == [7, -3, 0]
    assert [row["number"] for row in found] == [0.5, 1.0, -1e-05]
    assert [row["truth"] for row in found] == [True, False, True]
    assert [row["price"] for row in found] == ["2.50", "3.00", "1.10"]
    assert [row["day"] for row in found] == ["2026-01-02", "None", "NULL"]
    assert [row["mixed"] for row in found] == ["1", "nan", "inf"]
    assert [row["gap"] for row in found] == [None, 4, None]
    assert [row["Unnamed: 10"] for row in found] == ["x", "y", 'z\n"z"']
    assert [row["id"] for row in found] == ["12345678901234567890123", "1", "2"]


def test_csv_of_0_1_0_reads_as_it_did(tmp_path):
    (tmp_path / "d.csv").write_text("prompt,n,x,t\nsay one,1,0.5,a\nsay two,20,1.25,b\n")
    assert load(tmp_path / "d.csv") == list(Dataset.from_csv(str(tmp_path / "d.csv"), cache_dir=str(tmp_path / "c")))


def test_csv_of_other_habits(tmp_path):
    (tmp_path / "d.csv").write_text("prompt;answer\n1,5;2\n")
    assert load(tmp_path / "d.csv") == [{"prompt": "1,5", "answer": 2}]
    long = "x" * 300_000
    (tmp_path / "d.csv").write_text(f"prompt\n{long}\n")
    assert load(tmp_path / "d.csv") == [{"prompt": long}]
    (tmp_path / "d.csv").write_text("prompt,a,b\nshort\n,,\n")
    assert check(load(tmp_path / "d.csv"), "it") == [{"prompt": "short", "a": None, "b": None}]


# --- folders and splits -----------------------------------------------------------------------------------------------


def test_folders_of_save_to_disk(tmp_path):
    made = Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one")
    DatasetDict(train=made, test=made.select([1])).save_to_disk(tmp_path / "two")
    assert plain(load(tmp_path / "one")) == ROWS
    assert plain(load(tmp_path / "one", "train[1:]")) == ROWS[1:]
    assert plain(load(tmp_path / "two")) == ROWS
    assert plain(load(tmp_path / "two", "test")) == ROWS[1:]
    assert plain(load(tmp_path / "two", "train[:1]+test")) == ROWS
    with pytest.raises(DataError, match="has no split 'validation'; it has: train, test"):
        load(tmp_path / "two", "validation")
    (tmp_path / "two" / "test" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match="cannot load dataset"):
        load(tmp_path / "two", "test")


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".txt", ".parquet"])
def test_folders_of_files(tmp_path, kind):
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    for place, words in (("train-1", ["NA", "007"]), ("train-2", ["b"]), ("test", ["null"])):
        file = folder / f"{place}{kind}"
        table = Dataset.from_list([{"prompt": word, "answer": "00" + word} for word in words])
        if kind in (".csv", ".tsv"):
            file.write_text("".join(",\t"[kind == ".tsv"].join(line) + "\n" for line in [["prompt", "answer"], *(
                [row["prompt"], row["answer"]] for row in table)]))  # fmt: skip
        elif kind == ".txt":
            file.write_text("\n".join(words))
        elif kind == ".parquet":
            table.to_parquet(str(file))
        else:
            table.to_json(str(file), lines=kind == ".jsonl")
    assert [row["prompt"] for row in check(load(folder), "it")] == ["NA", "007", "b"]
    assert [row["prompt"] for row in check(load(folder, "test"), "it")] == ["null"]
    assert len(load(folder, "train[:2]")) == 2
    if kind != ".txt":
        assert [row["answer"] for row in load(folder)] == ["00NA", "00007", "00b"]
    with pytest.raises(DataError, match="validation"):
        load(folder, "validation")


def test_a_folder_without_data(tmp_path):
    with pytest.raises(DataError, match="cannot load dataset"):
        load(tmp_path)


def test_what_stands_for_a_split_may_be_a_file(tmp_path):
    assert dataset.names_a_file("test.jsonl.gz")
    assert dataset.names_a_file("~/saved")
    assert dataset.names_a_file("data/test")
    assert not dataset.names_a_file("test[:10%]")


# --- rows in Python ---------------------------------------------------------------------------------------------------


def endless_rows():
    return (ROWS[n % 2] for n in count())


class Indexed(torch.utils.data.Dataset):
    """Ends by its length alone."""

    def __len__(self):
        return 2

    def __getitem__(self, n):
        return ROWS[n % 2]


SAME = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "columns": lambda: {"prompt": ["one", "two"], "answer": ("1", "2")},
    "array of columns": lambda: {"prompt": np.array(["one", "two"]), "answer": pd.Series(["1", "2"])},
    "dataset": lambda: Dataset.from_list(ROWS),
    "pandas": lambda: pd.DataFrame(ROWS, index=[5, 9]),
    "pyarrow": lambda: pa.Table.from_pylist(ROWS),
    "torch": Indexed,
    "generator": lambda: (row for row in ROWS),
    "iterator": lambda: iter(ROWS),
    "stream": lambda: Dataset.from_list(ROWS).to_iterable_dataset(),
    "taken": lambda: IterableDataset.from_generator(endless_rows).take(2),
    "formatted stream": lambda: Dataset.from_list(ROWS).to_iterable_dataset().with_format("torch"),
    "pandas format": lambda: Dataset.from_list(ROWS).with_format("pandas"),
    "arrow format": lambda: Dataset.from_list(ROWS).with_format("arrow"),
    "numpy format": lambda: Dataset.from_list(ROWS).with_format("numpy"),
    "torch format": lambda: Dataset.from_list(ROWS).with_format("torch"),
    "some columns": lambda: Dataset.from_list([{**row, "x": 1} for row in ROWS]).with_format(
        columns=["prompt", "answer"]
    ),
    "transform": lambda: Dataset.from_list([{"q": r["prompt"], "a": r["answer"]} for r in ROWS]).with_transform(
        lambda batch: {"prompt": batch["q"], "answer": batch["a"]}
    ),
    "null rows": lambda: [None, ROWS[0], {}, {"prompt": None, "answer": float("nan")}, ROWS[1]],
    "null rows of a dataset": lambda: Dataset.from_list([ROWS[0], {"prompt": None, "answer": None}, ROWS[1]]),
    "null rows of a table": lambda: pd.DataFrame([ROWS[0], {"prompt": None, "answer": np.nan}, ROWS[1]]),
}


@pytest.mark.parametrize("kind", SAME)
def test_rows_as_users_hold_them(kind):
    found = check(SAME[kind](), "it")
    assert len(found) == 2
    assert columns_of(found) == ["prompt", "answer"]
    assert plain([found[n] for n in range(2)]) == ROWS
    assert plain(found) == ROWS


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow", None])
def test_conversations_in_any_format(kind):
    made = Dataset.from_list([{"prompt": TALK, "numbers": [1, 2], "n": 5}] * 2).with_format(kind)
    found = check(made, "it")
    assert found[0]["prompt"] == TALK
    kinds = {"numpy": np.ndarray, "torch": torch.Tensor}
    assert isinstance(found[0]["numbers"], kinds.get(kind, list))
    assert check(made.select_columns(["prompt"]), "it")[1]["prompt"] == TALK


@pytest.mark.parametrize(
    "prompts",
    [
        [json.dumps(TALK), f" {json.dumps(TALK)}\n"],
        [str(TALK), str(TALK)],
        [np.array(TALK, dtype=object), TALK],
        [tuple(TALK), TALK],
        [{"role": ["user"], "content": ["hi"]}, TALK],
    ],
)
def test_conversations_that_are_held_otherwise(prompts, caplog):
    made = [{"prompt": prompt, "answer": "1"} for prompt in prompts]
    assert [list(row["prompt"]) for row in check(made, "it")] == [TALK, TALK]
    assert ("written as text" in caplog.text) == isinstance(prompts[0], str)
    if isinstance(prompts[0], str):
        assert [row["prompt"] for row in check(Dataset.from_list(made), "it")] == [TALK, TALK]
        assert [row["answer"] for row in check(pd.DataFrame(made), "it")] == ["1", "1"]


@pytest.mark.parametrize("prompts", [["[1, 2]", "[3]"], [json.dumps(TALK), "write it as JSON"], ["[not JSON", "["]])
def test_text_that_only_looks_like_a_conversation_stays_text(prompts):
    assert [row["prompt"] for row in check([{"prompt": p} for p in prompts], "it")] == prompts


def test_texts_and_conversations_alone_are_prompts():
    assert check(["one", "two"], "it") == [{"prompt": "one"}, {"prompt": "two"}]
    assert check(pd.Series(["one", "two"], index=[7, 8]), "it") == [{"prompt": "one"}, {"prompt": "two"}]
    assert check(Dataset.from_list(ROWS)["prompt"], "it") == [{"prompt": "one"}, {"prompt": "two"}]
    assert check([TALK, "one"], "it") == [{"prompt": TALK}, {"prompt": "one"}]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (endless_rows, "stream of more than 1,000 rows.*take"),
        (lambda: IterableDataset.from_generator(endless_rows), "stream of more than 1,000 rows.*take"),
        (
            lambda: DatasetDict(train=Dataset.from_list(ROWS)),
            r"has several splits \(train\): give one.*data\['train'\]",
        ),
        (lambda: {"train": ROWS, "test": ROWS}, r"has several splits \(train, test\)"),
        (lambda: {"prompt": "one"}, "must be a list of dicts .*got one dict"),
        (lambda: {"prompt": ["one"], "answer": []}, "different lengths"),
        (dict, "must be a list"),
        (lambda: "data.jsonl", "must be a list of dicts.*seedtune.data.load"),
        (lambda: {"one", "two"}, "must be a list.*got set"),
        (lambda: 5, "must be a list.*got int"),
        (lambda: endless_rows, "must be a list.*got function"),
        (list, "is empty"),
        (lambda: iter([]), "is empty"),
        (lambda: pd.DataFrame({"prompt": []}), "is empty"),
        (lambda: Dataset.from_list([]), "is empty"),
        (lambda: [None, None], "is empty"),
        (lambda: [{"prompt": "a"}, 5], "row 2 is a int"),
        (lambda: [{"prompt": "a"}, "b", {"prompt": "c", "x": 1}], "row 3 has column 'x', .*the same columns"),
        (lambda: [{"prompt": "a", 1: "b"}], "a column 1, whose name is no text"),
        (lambda: [{"prompt": "a"}, {"prompt": "a", 1: "b", "x": 2}], "row 2 has column 1, unlike row 1"),
        (lambda: pd.DataFrame([["a", "b"]], columns=["prompt", "prompt"]), "two columns called 'prompt'"),
        (lambda: pd.DataFrame([["a", "b"]]), "a column 0, whose name is no text"),
        (
            lambda: [{"prompt": "a", "n": 1}, {"prompt": None, "n": 2}, {"prompt": float("nan"), "n": 3}],
            "in 2 of 3 rows: 2, 3",
        ),
        (
            lambda: Dataset.from_list([{"prompt": "a", "n": 1}] * 20_000 + [{"prompt": None, "n": 2}]),
            "1 of 20001 rows: 20001",
        ),
        (lambda: [{"prompt": [{"from": "human", "value": "hi"}]}], "ShareGPT"),
        (lambda: [{"prompt": TALK[0]}], "Put the message into a list"),
    ],
)
def test_what_cannot_be_rows_says_why(data, says, monkeypatch):
    monkeypatch.setattr(rows, "MOST_STREAMED", 1000)
    with pytest.raises(DataError, match=says):
        check(data(), "train_dataset")


def test_a_table_with_two_columns_of_one_name_in_a_file(tmp_path):
    table = pa.table([["a"], ["b"]], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "d.parquet")
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as f, pa.ipc.new_stream(f, table.schema) as writer:
        writer.write_table(table)
    for name in ("d.parquet", "d.arrow"):
        with pytest.raises(DataError, match="two columns called 'prompt'"):
            load(tmp_path / name)


def test_images_are_said_not_to_be_read(caplog):
    check([{"prompt": "a", "image": object()}], "train_dataset")
    assert "train_dataset: column 'image' is for reward functions only" in caplog.text


def test_streams_and_null_rows_are_noted(caplog):
    caplog.set_level(logging.INFO, "seedtune")
    check(Dataset.from_list(ROWS).to_iterable_dataset(), "train_dataset")
    assert "train_dataset: 2 rows were read from a stream" in caplog.text
    check([None, *ROWS], "train_dataset")
    assert "1 of 3 rows hold nothing at all and were left out" in caplog.text


def test_what_is_computed_on_access_is_computed_once():
    numbers = count()
    made = Dataset.from_list(ROWS).with_transform(lambda some: {"prompt": [str(next(numbers)) for _ in some["prompt"]]})
    found = check(made, "it")
    assert [row["prompt"] for row in found] == [row["prompt"] for row in found]


# --- a prompt by another name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "near"),
    [
        (["question", "answer"], "question"), (["answer", "problem"], "problem"),
        (["instruction", "input"], "instruction"), (["Query"], "Query"), (["input", "output"], "input"),
        (["id", "messages"], "messages"), ([" Prompt", "text"], " Prompt"), (["text", "question"], "question"),
    ],
)  # fmt: skip
def test_a_column_that_is_likely_the_prompt_is_suggested(columns, near):
    for made in ([dict.fromkeys(columns, "x")], Dataset.from_list([dict.fromkeys(columns, "x")])):
        with pytest.raises(DataError, match=r"no column 'prompt'; it has: ") as e:
            check(made, "train_dataset")
        assert f"rename_column({near!r}, 'prompt'), or set dataset_prompt_column: {near}." in str(e.value)
        assert ("without the answer at its end" in str(e.value)) == (near == "messages")
    with pytest.raises(DataError, match="Rename the column that holds the question"):
        check([{"solution": "x"}], "train_dataset")


def test_a_setting_names_the_prompt_column(tmp_path, tiny_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.csv").write_text("question,answer\nsay a,007\nsay b,NA\n")
    (tmp_path / "r.py").write_text(
        "def match(prompts, completions, answer, **kwargs):\n"
        "    assert set(answer) <= {'007', 'NA'} and 'question' not in kwargs\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    flags = [
        "train", "--model_name_or_path", str(tiny_folder), "--dataset_name", "d.csv", "--dataset_test_split", "d.csv",
        "--reward_funcs", "r.py:match", "--max_steps", "1", "--population_size", "2", "--max_completion_length", "4",
        "--dtype", "float32", "--device", "cpu", "--guard", "false", "--load_best_model_at_end", "false",
    ]  # fmt: skip
    assert main(flags) == 1
    assert "set dataset_prompt_column: question" in capsys.readouterr().err
    assert main([*flags, "--dataset_prompt_column", "quetsion"]) == 1
    assert "it has: question, answer" in capsys.readouterr().err
    assert main([*flags, "--dataset_prompt_column", "question"]) == 0
    made = Dataset.from_list([{"question": "a"}])
    assert columns_of(dataset.with_prompt(made, "question", "it")) == ["prompt"]
    with pytest.raises(DataError, match="already"):
        dataset.with_prompt(ROWS, "answer", "it")


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pandas", "stream", "transform", "torch format", "columns"])
def test_a_run_on_them(tmp_path, kind):
    made = trainer(tmp_path, rows=SAME[kind](), reward_funcs=quiet_length, max_steps=1, max_completion_length=4)
    alike = trainer(tmp_path, rows=ROWS, reward_funcs=quiet_length, max_steps=1, max_completion_length=4)
    assert made.prompts.digest() == alike.prompts.digest()
    assert made.train().global_step == 1
