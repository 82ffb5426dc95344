"""Every block of code in the README and on the site is run, with a tiny model in place of a real one; those marked
`<!-- not run: why -->` say why not. Commands of blocks that are not run are held to the command line.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

import pages
from seedtune import ESConfig, ESTrainer
from seedtune.cli import main, options
from seedtune.compare.comparison import comparison
from seedtune.config import yaml_file
from seedtune.config.auto import with_auto
from seedtune.config.run_config import RunConfig
from seedtune.training.recipe import resolve
from tiny import save_tiny, tiny_llama, tiny_tokenizer

MAKEFILE = (pages.ROOT / "Makefile").read_text()
#: Files of the pages' examples that the repository does not have: what stands for them.
STAND_INS = {"recipe.yaml": "recipes/own-reward.yaml", "settings.yaml": "recipes/own-reward.yaml"}


def of(kind, all=False):
    return [pytest.param(block, id=str(block)) for block in pages.ALL if block.kind == kind and (all or block.is_run)]


def commands(block):
    """The commands of a shell block, without comments, their continued lines joined."""
    joined = block.text.replace("\\\n", " ")
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def check_seedtune(words):
    """The command parses, and its settings are ones that a run could have."""
    parser, known = main._parser()
    parsed, rest = parser.parse_known_args(words)
    assert parsed.command in known
    file = getattr(parsed, "config", None)
    values = yaml_file.read(pages.ROOT / STAND_INS.get(file, file)) if file else {}
    if parsed.command == "compare":
        assert comparison({**values, **options.given(parsed)}).cells
        return
    options.refuse_unknown(parsed, rest, values)
    resolve(values, options.given(parsed))


def check_pip(words):
    """Extras that are asked for exist; so do files."""
    extras = re.findall(r"\[([a-z,]+)\]", " ".join(word for word in words if word.startswith(".")))
    declared = (pages.ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for names in extras for extra in names.split(","))
    if "--constraint" in words:
        assert (pages.ROOT / words[words.index("--constraint") + 1]).is_file()


def check(words, page="README.md"):
    if words[0] == "seedtune":
        check_seedtune(words[1:])
    elif words[0] == "make":
        assert all("=" in word or re.search(rf"^{word}:", MAKEFILE, re.MULTILINE) for word in words[1:]), words
    elif words[0] == "pip":
        check_pip(words)
    elif words[0] == "python":
        shown = f"```python\n# {words[1]}\n" in (pages.ROOT / page).read_text()
        assert shown or (pages.ROOT / words[1]).is_file(), words
    elif words[0] == "pytest":
        assert all((pages.ROOT / word).exists() for word in words[1:] if "/" in word), words
    else:
        assert words[0] == "source" or words[:3] == ["python3", "-m", "venv"], f"mark the block as not run: {words}"


@pytest.mark.parametrize("block", of("sh", all=True))
def test_commands_are_right(block):
    """Of blocks that are not run, those of programs that are known."""
    for words in commands(block):
        if block.is_run or words[0] in ("seedtune", "make", "pip", "python", "pytest"):
            check(words, block.page)


#: Settings of commands that are run: each gets those that it takes and does not set.
SMALL = {
    "max_completion_length": "4", "max_steps": "2", "population_size": "4", "sigma": "0.05", "reward_workers": "0",
    "max_eval_samples": "2", "load_best_model_at_end": "false", "dtype": "float32", "device": "cpu",
}  # fmt: skip
#: What ends with 1 for what it found: runs that differ, a model that will not learn.
MAY_END_WITH_1 = ("diff", "preflight")


def small(words, model):
    """A command of Seedtune, of a tiny model, for a moment."""
    words = [str(model) if word == "Qwen/Qwen2.5-0.5B-Instruct" else word for word in words]
    if "--resume" in words:
        return words
    sub = main._parser()[0]._subparsers._group_actions[0].choices[words[0]]
    takes = {action.dest for action in sub._actions}
    if words[0] in ("train", "preflight", "demo") and "--model_name_or_path" not in words:
        words = [*words, "--model_name_or_path", str(model)]
    more = [(f"--{name}", value) for name, value in SMALL.items() if name in takes and f"--{name}" not in words]
    return [*words, *(word for pair in more for word in pair)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model whose context holds the prompts of every task."""
    return save_tiny(tmp_path_factory.mktemp("tiny"), context=2048)


@pytest.fixture(scope="module")
def before(tmp_path_factory, tiny):
    """What pages take to be there: runs, their patches, and the repository's recipes."""
    folder = tmp_path_factory.mktemp("before")
    (folder / "recipes").symlink_to(pages.ROOT / "recipes")
    for name, seed in (("demo", "1"), ("other", "2")):
        run = ["--task", "conciseness", "--output_dir", str(folder / "runs" / name), "--seed", seed, "--max_steps", "4"]
        assert main.main(small(["train", *run], tiny)) == 0
    for run, patch in (("demo", "brief"), ("other", "other")):
        at = str(folder / "runs" / run)
        assert main.main(["export", at, "--until", "last", "--patch", str(folder / f"{patch}.seedtune")]) == 0
    return folder


def write_files(page):
    """Files that a page shows: Python with its name in the first line, rows behind a sentence that names them."""
    text = page.read_text()
    for name, source in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL):
        Path(name).write_text(source)
    for name, rows in re.findall(r"`(\w+\.jsonl)`:\n\n```json\n(.*?)```", text, re.DOTALL):
        Path(name).write_text(rows)


def pages_with_commands():
    names = [block.page for block in pages.ALL if block.kind == "sh" and block.is_run and "seedtune" in block.text]
    return sorted({pages.ROOT / name for name in names} - {pages.ROOT / "README.md"})


@pytest.mark.parametrize("page", pages_with_commands(), ids=lambda page: page.stem)
def test_commands_run(page, tiny, before, tmp_path, monkeypatch):
    """The commands of a page, one after another, in a folder that has what the page shows."""
    shutil.copytree(before, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    write_files(page)
    for block in (b for b in pages.blocks(page) if b.kind == "sh" and b.is_run):
        for words in (words for words in commands(block) if words[0] == "seedtune"):
            code = main.main(small(words[1:], tiny))
            assert code == 0 or (code == 1 and words[1] in MAY_END_WITH_1), " ".join(words)


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_commands_in_the_text(page):
    """Commands and flags that are named in passing exist."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for command in re.findall(r"`seedtune ([^`]+)`", text):
        words = [word for word in shlex.split(command.replace("--seed N", "--seed 1")) if word != "..."]
        flags = {f"--{word.removeprefix('--').replace('-', '_')}" for word in words if word.startswith("--")}
        if words[0].isupper() or not re.fullmatch(r"[a-z]+", words[0]):
            continue
        sub = main._parser()[0]._subparsers._group_actions[0].choices[words[0]]
        known = {string.replace("-", "_") for action in sub._actions for string in action.option_strings}
        assert {flag.replace("-", "_") for flag in flags} <= known, command


@pytest.mark.parametrize("block", of("yaml"))
def test_settings(block):
    values = yaml.safe_load(block.text)
    if "methods" in values:
        assert values["methods"]
        return
    RunConfig(**with_auto(values))


@pytest.mark.parametrize("block", of("json"))
def test_rows(block):
    for line in block.text.splitlines():
        assert "prompt" in json.loads(line)


class Small(ESTrainer):
    """A trainer as the pages have it, of the tiny model, for a moment."""

    def __init__(self, model=None, reward_funcs=None, args=None, *more, **others):
        small = dataclasses.replace(
            args, device="cpu", dtype="float32", max_completion_length=4, max_steps=min(args.max_steps, 2),
            population_size=4, reward_workers=0,
        )  # fmt: skip
        super().__init__(tiny_llama(), reward_funcs, small, *more, processing_class=tiny_tokenizer(), **others)


@pytest.fixture
def around(tmp_path, monkeypatch):
    """A folder to run in, and the names that blocks take for granted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("seedtune.ESTrainer", Small, raising=False)

    def my_reward(completions, **kwargs):
        return [float(len(str(c))) for c in completions]

    dataset = [{"prompt": f"say {n}", "completion": f"{n}", "solution": "a"} for n in range(4)]
    trainer = Small("tiny", my_reward, ESConfig(output_dir="before", max_steps=1), dataset)
    return {"__name__": "block", "ESConfig": ESConfig, "ESTrainer": Small, "my_reward": my_reward, "dataset": dataset,
            "model": "tiny", "trainer": trainer, "math": __import__("math")}  # fmt: skip


@pytest.mark.parametrize("block", of("python"))
def test_python(block, around, monkeypatch):
    write_files(pages.ROOT / block.page)
    monkeypatch.syspath_prepend(".")
    exec(compile(block.text, str(block), "exec"), around)  # noqa: S102  # a block of our own pages


def test_the_readmes_example_as_a_command(tmp_path, tiny_folder, monkeypatch):
    """The function and the rows of the Python example, from files."""
    monkeypatch.chdir(tmp_path)
    readme = pages.blocks(pages.ROOT / "README.md")
    source = next(b.text for b in readme if b.kind == "python")
    function = source[source.index("def ") : source.index("questions =")]
    rows = {}
    exec(source[source.index("questions =") : source.index("trainer =")], rows)  # noqa: S102  # a block of our own pages
    Path("reward.py").write_text(function)
    lines = [{"prompt": [{"role": "user", "content": q}], "answer": a} for q, a in rows["questions"].items()]
    Path("questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [words] = [words for b in readme if "reward.py" in b.text for words in commands(b)]
    few = "--max_steps 1 --max_completion_length 4 --population_size 4 --dtype float32 --device cpu".split()
    assert main.main([*words[1:], *few, "--model_name_or_path", str(tiny_folder)]) == 0
    assert Path("out/journal.jsonl").is_file()


def test_blocks_say_what_they_are():
    kinds = {"sh", "python", "json", "yaml", "text", ""}
    assert {block.kind for block in pages.ALL} <= kinds
    assert not [str(b) for b in pages.ALL if b.kind == "" and "seedtune " in b.text and b.is_run]


def test_a_reason_stands_where_a_block_is_not_run():
    assert all(len(block.note) > len("not run: ") + 8 for block in pages.ALL if not block.is_run)
