"""Shared fixtures. Tests never reach for the network."""

from __future__ import annotations

import gc
import logging
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tiny import save_tiny


@pytest.fixture(autouse=True)
def messages_as_before():
    """The command line shows messages of Seedtune's loggers; other tests do not, nor do those behind a fixture of a
    whole module that called it.
    """
    logger = logging.getLogger("seedtune")
    logger.setLevel(logging.NOTSET)
    logger.handlers = []
    yield
    logger.setLevel(logging.NOTSET)
    logger.handlers = []


@pytest.fixture(autouse=True, scope="session")
def disks_are_not_waited_for():
    """Every process sees at once what another has written; only a machine that stops loses what was not synced."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny float32 Llama with a byte tokenizer, as a folder."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


#: Files that take longest, behind all that starts Ray: one of them as the last would keep one process waiting.
LONGEST = ("test_compare.py", "test_smollm2.py", "test_processes.py", "test_kill.py", "test_trainer.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Of two processes (pytest-xdist) one runs all that starts Ray, first, as two clusters would slow each other down;
    other files stay whole.
    """
    items.sort(key=lambda item: (item.path.parent.name != "distributed", item.path.name not in LONGEST))  # stable
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            folder = item.path.parent.name
            item.add_marker(pytest.mark.xdist_group(folder if folder == "distributed" else str(item.path)))


def pytest_collection_finish(session):
    """What was imported stays: the garbage collector need not look through it again and again. And pytest-xdist 3.8
    groups nothing with pytest 9.2, without a word.
    """
    gc.collect()
    gc.freeze()
    if getattr(session.config.option, "loadgroup", False):
        assert all("@" in item.nodeid for item in session.items), "use the pytest of constraints.txt"
