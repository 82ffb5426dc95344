"""What reward functions import of the user's own is sent with them to where it is not."""

from __future__ import annotations

import shutil
import subprocess
import sys

import cloudpickle
import pytest

from seedtune.rewards.call import Batch, call
from seedtune.rewards.function import Reward
from seedtune.rewards.lookup import resolve
from seedtune.rewards.serialize import carried, load
from seedtune.rewards.sources import is_own, with_sources

FILES = {
    "sent_mine.py": "from sent_beside import length\n\n"
    "def f(completions, **_):\n    import sent_lazy.deep.er as deep\n"
    "    return [length(c) + deep.MORE for c in completions]\n\n"
    "class Scorer:\n    def __call__(self, completions, **_):\n        return [length(c) for c in completions]\n\n"
    "def fails(completions, **_):\n    from sent_beside import broken\n    broken()\n\n"
    "def reads(completions, **_):\n    from sent_beside import words\n    return words()\n",
    "sent_beside.py": "import threading\nfrom pathlib import Path\nfrom sent_package import inner\n"
    "LOCK = threading.Lock()\n"  # which cannot be pickled
    "def length(text):\n    with LOCK:\n        return len(text) + inner.ONE\n\n"
    "def broken():\n    raise ValueError('here')\n\n"
    "def words():\n    return (Path(__file__).parent / 'words.txt').read_text()\n",
    "sent_package/__init__.py": "",
    "sent_package/inner.py": "from .other import ONE\nfrom . import other as again\nassert again.ONE == ONE\n",
    "sent_package/other.py": "import numpy\nONE = int(numpy.ones(1)[0])\n",
    "sent_lazy/deep/er.py": "MORE = 10\n",  # no __init__.py
    "sent_unused.py": "raise SystemExit('who imports this?')\n",
}
THERE = """
import sys, cloudpickle
from seedtune.rewards.call import Batch, call
for reward in cloudpickle.loads(sys.stdin.buffer.read()):
    print(call(reward, Batch(["p"], ["abc"], [[1]], {})).rewards, flush=True)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in FILES.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_text(text)
    yield tmp_path / "files"
    for name in [name for name in sys.modules if "sent_" in name]:
        del sys.modules[name]
    resolve.cache_clear()
    cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES -= {"sent_mine"}


def there(folder, functions):
    """What the functions return in a process that has not got their files."""
    sent = carried([Reward(f) for f in functions]).pickled
    shutil.rmtree(folder)
    return subprocess.run([sys.executable, "-c", THERE], input=sent, capture_output=True, cwd="/", check=False)


def test_modules_beside_a_file_and_what_they_import_are_sent(folder):
    done = there(folder, [f"{folder}/sent_mine.py:f"])
    assert (done.stdout.decode(), done.stderr.decode()) == ("[14.0]\n", "")


def test_functions_and_objects_of_modules_and_what_closures_hold(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    import sent_beside
    import sent_mine

    def closure(completions, **_):
        return [of(c) for c in completions]

    of = sent_beside.length
    done = there(folder, [sent_mine.f, sent_mine.Scorer(), closure])
    assert (done.stdout.decode(), done.stderr.decode()) == ("[14.0]\n[4.0]\n[4.0]\n", "")


def test_tracebacks_have_the_lines_of_what_was_sent(folder):
    said = there(folder, [f"{folder}/sent_mine.py:fails"]).stderr.decode()
    assert "raise ValueError('here')" in said


def test_only_code_is_sent(folder):
    said = there(folder, [f"{folder}/sent_mine.py:reads"]).stderr.decode()
    assert "raised FileNotFoundError" in said
    assert "words.txt" in said


def test_where_it_was_made_files_are_read_again(folder):
    functions = carried([Reward(f"{folder}/sent_mine.py:f")])
    before = [*sys.meta_path]
    assert call(load(functions.pickled)[0], Batch(["p"], ["abc"], [[1]], {})).rewards == [14]
    assert sys.meta_path == before


@pytest.mark.parametrize("module", [cloudpickle, pytest, subprocess])
def test_what_is_installed_is_not_sent(module):
    assert not is_own(module.__name__, module.__file__)
    pickled = cloudpickle.dumps(module)
    assert with_sources(pickled, [module]) == pickled
