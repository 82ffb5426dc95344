"""Ray's workers and the cells of comparisons, forked from a process that has imported what they need and done a tiny
run: that is most of what one on a tiny model takes.

In place of `python SCRIPT ...` or `python -m MODULE ...` stands `python warm.py SCRIPT ...`: this command, its
environment and its output go to the process of `serve`, at the socket that the environment names, whose child then runs
it.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

SOCKET = "SEEDTUNE_TEST_WARM"
#: Options of the script of Ray's in whose place this one is, not of WORKER.
NOT_OF_WORKER = ("--language=", "--serialized-runtime-env-context=")


@contextmanager
def server() -> Iterator[None]:
    """The process whose children do the work; the environment names its socket meanwhile."""
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "socket"))
        command = [sys.executable, __file__, "--serve", path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(5) == b"ready"
            os.environ[SOCKET] = path
            try:
                yield
            finally:
                del os.environ[SOCKET]
                process.kill()


@contextmanager
def warm_workers() -> Iterator[None]:
    """A Ray cluster that is started meanwhile has such workers."""
    from unittest.mock import patch  # takes longer than all else that is imported here

    from ray._private import ray_constants

    with server(), patch.object(ray_constants, "SETUP_WORKER_FILENAME", __file__):
        yield


@contextmanager
def warm_cells() -> Iterator[None]:
    """A comparison that is run meanwhile has such cells."""
    from unittest.mock import patch

    from seedtune.compare import runner

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "--wait", *command[1:]], **options)

    with server(), patch.object(runner, "subprocess", SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)):
        yield


def ask(command: list[str], wait: bool = False) -> int:
    """Have a child of the server run it in this process's place; the exit code, if that is waited for."""
    with socket.socket(socket.AF_UNIX) as to:
        to.connect(os.environ[SOCKET])
        socket.send_fds(to, [b" "], [0, 1, 2])
        to.sendall(json.dumps([command, dict(os.environ), os.getcwd(), wait]).encode())
        to.shutdown(socket.SHUT_WR)
        return int(to.recv(8)) if wait else 0


def serve(path: str) -> list[str]:
    """Returns in every child, with its command; ends when the standard input does."""
    warm_up()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.write(1, b"ready")
        while listener in select.select([listener, 0], [], [])[0]:
            connection = listener.accept()[0]
            if not os.fork():
                listener.close()
                return become(connection)
            connection.close()
    sys.exit()


def warm_up() -> None:
    """Not with Ray, which reads its environment as it is imported. Modules of tests are not found afterwards, as they
    are in no other worker.
    """
    import seedtune.distributed.replica  # noqa: F401
    from runs import trainer
    from tiny import save_tiny

    with TemporaryDirectory() as folder:
        model = str(save_tiny(Path(folder, "model")))
        for how in ("full", "lowrank"):
            trainer(Path(folder, how), model=model, max_steps=1, threads=1, perturbation=how).train()
    sys.path.remove(str(Path(__file__).parent))
    for name in ("runs", "tiny"):
        del sys.modules[name]
    gc.collect()
    gc.freeze()


def become(connection: socket.socket) -> list[str]:
    """Take on what `ask` sent; returns the command."""
    descriptors = socket.recv_fds(connection, 1, 3)[1]
    said = b"".join(iter(lambda: connection.recv(2**16), b""))
    command, environment, folder, wait = json.loads(said)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if wait and (child := os.fork()):
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return command


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        sys.argv = serve(sys.argv[2])
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    elif sys.argv[1] == "--wait":
        sys.exit(ask(sys.argv[2:], wait=True))
    else:
        ask([word for word in sys.argv[1:] if not word.startswith(NOT_OF_WORKER)])
