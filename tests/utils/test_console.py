"""Messages on the command line: the logger's records, printed by rich."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
import rich

from seedtune.utils import console


@pytest.fixture
def installed(monkeypatch):
    logger = logging.getLogger("seedtune")
    before, level = list(logger.handlers), logger.level
    console.install()
    console.install()
    yield logger
    logger.handlers, logger.level = before, level
    rich.reconfigure()


def test_messages_are_plain_lines_without_a_terminal(installed, capsys):
    long = "a [bold]word[/bold] " * 30
    installed.getChild("rollout").info(long)
    installed.debug("not shown")
    assert capsys.readouterr().out == long + "\n"


def test_a_warning_is_yellow_on_a_terminal(installed):
    rich.reconfigure(file=io.StringIO(), force_terminal=True, color_system="standard")
    installed.info("said")
    installed.warning("careful")
    assert rich.get_console().file.getvalue() == "said\n\x1b[33mWarning: careful\x1b[0m\n"


def test_lines_end_between_words_on_a_terminal(installed):
    rich.reconfigure(file=io.StringIO(), force_terminal=True, color_system=None, width=30)
    installed.info("measuring how far noise moves what the model writes")
    told = [line.rstrip() for line in rich.get_console().file.getvalue().splitlines()]
    assert told == ["measuring how far noise moves", "what the model writes"]


def test_output_that_others_read_stays_free_of_messages(installed, capsys):
    console.install(stderr=True)
    installed.info("said")
    assert capsys.readouterr() == ("", "said\n")


def test_what_bitsandbytes_lacks_is_nobodys_business(installed, capsys):
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
    assert capsys.readouterr() == ("", "")


def test_a_library_user_sees_standard_records():
    code = "import seedtune, logging; from seedtune.utils import console; print(logging.getLogger('seedtune').handlers)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
