"""Programs that mean no harm, and sandboxes that are not there."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from sandboxes import needs_bubblewrap, run
from seedtune import sandbox
from seedtune.errors import ConfigError, SandboxError
from seedtune.sandbox import program


@pytest.fixture
def unchecked():
    """As in a process that has not tried it yet."""
    sandbox.check.cache_clear()
    yield
    sandbox.check.cache_clear()


@needs_bubblewrap
def test_what_comes_back():
    result = run("import sys\nprint(input()[::-1])\nprint('e', file=sys.stderr)\nsys.exit(3)", "äbc\n")
    assert (result.stdout, result.stderr, result.exit_code, result.ended, result.ok) == (
        "cbä\n", "e\n", 3, "error", False
    )  # fmt: skip
    assert result.seconds > 0


@needs_bubblewrap
@pytest.mark.parametrize(
    ("code", "ended", "exit_code"),
    [
        ("exit()", "ok", 0),
        ("1 / 0", "error", 1),
        ("raise MemoryError", "memory", 1),
        ("import os\nos.abort()", "error", 134),
        ("import os\nos.kill(os.getpid(), 9)", "error", 137),
        ("def", "error", 1),
        ("\0", "error", 1),
        ("print('\ud800')", "error", 1),
        ("", "ok", 0),
        ("import this, decimal, sqlite3, ctypes, json, asyncio\nasyncio.run(asyncio.sleep(0))", "ok", 0),
    ],
)
def test_how_it_ended(code, ended, exit_code):
    result = run(code)
    assert (result.ended, result.exit_code) == (ended, exit_code), result


@needs_bubblewrap
def test_tracebacks_are_those_of_a_script():
    result = run("def f():\n    raise ValueError('x')\nif __name__ == '__main__': f()")
    assert result.stderr.splitlines()[1] == '  File "/main.py", line 3, in <module>'


@needs_bubblewrap
def test_output_that_is_no_text_and_input_that_is_long():
    assert run("import sys\nsys.stdout.buffer.write(b'a\\xff\\x00')").stdout == "a\ufffd\0"
    assert run("print(len(input()))", "a" * 10**7).stdout == "10000000\n"


@needs_bubblewrap
def test_nothing_is_left_open():

    run("print(1)")
    before = set(os.listdir("/proc/self/fd"))
    for code in ("print(1)", "while True: print(1)", "1 / 0"):
        run(code, output=100)
    assert set(os.listdir("/proc/self/fd")) == before


@needs_bubblewrap
def test_two_programs_that_talk():
    ask = "import sys\nfor n in range(3):\n    print(n, flush=True)\n    print(input(), file=sys.stderr)"
    answer = "while True: print(2 * int(input()), flush=True)"
    asked, answered = sandbox.converse(ask, answer, sandbox.Limits(), sandbox.Limits())
    assert (asked.stderr, asked.ended) == ("0\n2\n4\n", "ok")
    assert "EOFError" in answered.stderr


@needs_bubblewrap
@pytest.mark.parametrize("silent", ["exit()", "while True: pass", "import os; os.abort()"])
def test_two_programs_of_which_one_says_nothing(silent):
    limits = sandbox.Limits(seconds=1)
    asked, answered = sandbox.converse("print(input())", silent, sandbox.Limits(), limits)
    assert "EOFError" in asked.stderr
    asked, answered = sandbox.converse(silent, "print(input())", limits, sandbox.Limits())
    assert "EOFError" in answered.stderr


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"seconds": 0}, "seconds is a number above 0"),
        ({"seconds": float("nan")}, "seconds is a number above 0"),
        ({"seconds": "5"}, "seconds is a number above 0"),
        ({"memory": 1}, "memory is at least 67,108,864"),
        ({"memory": 1e9}, "memory is a whole number"),
        ({"threads": True}, "threads is a whole number"),
        ({"files": -1}, "files is a whole number above 0"),
    ],
)
def test_limits_that_cannot_be(limits, says):
    with pytest.raises(ConfigError, match=says):
        sandbox.Limits(**limits)


def test_without_bubblewrap_nothing_is_run(monkeypatch, unchecked, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"needs bubblewrap .* apt install bubblewrap"):
        sandbox.run("print(1)")


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "riscv64")])
def test_other_machines_are_refused(monkeypatch, unchecked, system, machine):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(SandboxError, match=r"needs Linux|knows x86_64 and aarch64; this is riscv64"):
        sandbox.run("print(1)")


@needs_bubblewrap
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions"),
        ("echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1", r"does not let this user make namespaces"),
        ("exit 0", "bubblewrap said nothing"),
        ("echo 3", "bubblewrap said nothing"),  # the right output, of something else
    ],
)
def test_where_namespaces_are_not_allowed(monkeypatch, unchecked, script, says):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # /tmp is hidden when bubblewrap starts
        fake = Path(folder, "bwrap")
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        Path(folder).chmod(0o755)
        monkeypatch.setattr(program, "_bubblewrap", lambda: str(fake))
        with pytest.raises(SandboxError, match=says):
            sandbox.run("print(1)")


@needs_bubblewrap
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="no Python that others may run")
def test_who_is_not_root_may_run_programs_as_well():
    """With the system's Python, as the root's own may not be for others to read."""
    code = "import os; print(os.getuid(), os.listdir('/work')); os.fork()"
    asking = (
        "import sys\nif sys.version_info < (3, 11): print('too old'); sys.exit()\n"
        f"sys.path.insert(0, {str(Path(sandbox.__file__).parents[2])!r})\nfrom seedtune import sandbox\n"
        f"result = sandbox.run({code!r})\nprint(result.stdout, result.stderr[-60:])"
    )
    said = subprocess.run(
        ["/usr/bin/python3", "-c", asking], user=12345, group=12345, extra_groups=[], capture_output=True, text=True
    )
    if "Permission denied" in said.stderr or "No module named 'seedtune'" in said.stderr or "too old" in said.stdout:
        pytest.skip("others may not read this package, or the system's Python is older than 3.11")
    assert said.stdout.startswith("1000 []\n"), said
    assert "Operation not permitted" in said.stdout
