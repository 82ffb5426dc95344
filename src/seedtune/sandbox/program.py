"""Running one program in a sandbox of its own, by bubblewrap."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import SandboxError
from . import runtime, seccomp
from .limits import Ended, Limits, Result

_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_OUT_OF_CPU = 128 + 24  # SIGXCPU, as a shell says it
_HOW = (
    "Install it (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap), version 0.5 or newer. "
    "docs/guides/sandbox.md says what it needs. Code that a model wrote is not run without it."
)


def run(code: str, stdin: str = "", limits: Limits | None = None) -> Result:
    """Run a Python program in a sandbox: alone, without network, with the standard library and nothing else of this
    machine, within `limits`. Returns when it has ended and nothing of it runs any more; threads may call this at once.

    Raises SandboxError where there is no sandbox: never because of what the program does.
    """
    check()
    return _run(code, limits or Limits(), _bytes(stdin))


def converse(first: str, second: str, limits: Limits, limits_of_second: Limits) -> tuple[Result, Result]:
    """Run two programs at once, each in a sandbox of its own, as `run` does. What one writes to stdout is what the
    other reads from stdin, and is not limited; there is nothing else between them. The results have their stderr.

    Raises SandboxError where there is no sandbox.
    """
    check()
    (to_second, from_first), (to_first, from_second) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(_run, second, limits_of_second, to_second, from_second)
        return _run(first, limits, to_first, from_first), other.result()


@cache
def check() -> None:
    """Raise SandboxError where programs cannot be run in a sandbox; tried once per process, with a program that adds
    two numbers.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"the sandbox for generated code needs Linux; this is {platform.system()}. {_HOW}")
    if platform.machine() not in seccomp.MACHINES:
        known = " and ".join(seccomp.MACHINES)
        raise SandboxError(f"the sandbox for generated code knows {known}; this is {platform.machine()}.")
    if _bubblewrap() is None:
        raise SandboxError(f"the sandbox for generated code needs bubblewrap (bwrap), which is not here. {_HOW}")
    result = _run("print(1 + 2)", Limits(seconds=60), b"")
    if result.stdout != "3\n":
        raise SandboxError(f"a program in the sandbox did not run: {result.stderr or result.ended}")


def _bubblewrap() -> str | None:
    return shutil.which("bwrap")


def _run(code: str, limits: Limits, stdin: bytes | int, stdout: int | None = None) -> Result:
    """`stdin`: its content, or an open file; `stdout`: an open file. These are closed."""
    begun = time.monotonic()
    with ExitStack() as open_files:

        def holds(content: bytes) -> int:
            return open_files.enter_context(_sealed(content))

        status, status_here = os.pipe2(os.O_CLOEXEC)
        open_files.callback(os.close, status)
        with ExitStack() as only_theirs:
            for file in (status_here, *(f for f in (stdin, stdout) if isinstance(f, int))):
                only_theirs.callback(os.close, file)
            given = {"code": holds(_bytes(code)), "seccomp": holds(seccomp.assemble()), "status": status_here}
            process = subprocess.Popen(
                [runtime.HERE, "-I", "-S", _START, json.dumps(_spec(limits, given))],
                stdin=holds(stdin) if isinstance(stdin, bytes) else stdin,
                stdout=subprocess.PIPE if stdout is None else stdout, stderr=subprocess.PIPE,
                pass_fds=tuple(given.values()), env=_environment(), cwd="/", start_new_session=True,
            )  # fmt: skip
        with process:  # closes its pipes
            pipes = [status, *(p.fileno() for p in (process.stderr, process.stdout) if p)]
            try:
                (said, *outputs), killed = _read(pipes, limits, begun + limits.seconds)
            finally:
                _end(process)
        written, printed = (part[: limits.output].decode(errors="replace") for part in [*outputs, b""][:2])
        exit_code = None if killed else _exit_code(said)
        if exit_code is None and not killed:
            raise SandboxError(f"the sandbox for generated code does not start: {_why(written)}")
        ended = killed or _ended(exit_code, written)
        return Result(printed, written, exit_code, ended, time.monotonic() - begun)


_START = str(Path(__file__).with_name("start.py"))


def _environment() -> dict[str, str]:
    """For `start`: some builds of Python do not find their own libraries without it. It does not pass it on."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _spec(limits: Limits, given: dict[str, int]) -> dict[str, Any]:
    """What `start` is told. `given`: files that are open, by their numbers."""
    cpu = math.ceil(limits.seconds) + 1
    return {
        "parent": os.getpid(),
        "binds": runtime.binds(),
        "covered": runtime.covered(),
        "devices": _DEVICES,
        "code": given["code"],
        "disk": limits.disk,
        "files": limits.files + 1,  # the folder itself
        "threads": limits.threads,
        "limits": {
            "AS": limits.memory, "CPU": cpu, "FSIZE": limits.disk, "NOFILE": limits.open_files, "CORE": 0,
            "MEMLOCK": 0, "MSGQUEUE": 0, "STACK": 8 * 2**20, "SIGPENDING": 256,
        },
        "bubblewrap": _bubblewrap(),
        "command": _command(given),
    }  # fmt: skip


def _command(given: dict[str, int]) -> list[str]:
    """What bubblewrap is called with. (glibc sets aside 128 MiB of addresses per thread, if it may.)"""
    devices = [text for device in _DEVICES for text in ("--dev-bind", device, device)]
    return [
        "bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--die-with-parent",
        "--new-session", "--cap-drop", "ALL", "--clearenv", "--setenv", "MALLOC_ARENA_MAX", "1",
        "--ro-bind", "/tmp/root", "/", *devices,
        "--bind", "/tmp/work", "/work", "--chdir", "/work", "--seccomp", str(given["seccomp"]),
        "--json-status-fd", str(given["status"]), "--",
        runtime.interpreter(), "-I", "-B", "-X", "utf8", "/main.py",
    ]  # fmt: skip


@contextmanager
def _sealed(content: bytes) -> Iterator[int]:
    """A file in memory that whoever has it may read, and nobody can change."""
    file = os.memfd_create("seedtune", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(file, "wb", closefd=False) as writer:
            writer.write(content)
        os.lseek(file, 0, os.SEEK_SET)
        import fcntl  # Windows lacks it

        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield file
    finally:
        os.close(file)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _read(pipes: list[int], limits: Limits, until: float) -> tuple[list[bytes], Ended | None]:
    """What comes out of the pipes until all are closed, or until the program has to be killed, and for what."""
    parts: dict[int, list[bytes]] = {pipe: [] for pipe in pipes}
    killed: Ended | None = None
    with _selector(pipes) as ready:
        while ready.get_map() and killed is None:
            for key, _ in ready.select(max(until - time.monotonic(), 0)):
                parts[key.fd].append(part := os.read(key.fd, 2**16))
                if not part:
                    ready.unregister(key.fd)
                elif sum(map(len, parts[key.fd])) > limits.output:
                    killed = "output"
            if killed is None and ready.get_map() and time.monotonic() >= until:
                killed = "time"
    return [b"".join(some) for some in parts.values()], killed


def _end(process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Have `start` kill all that it has started, and wait until it has."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise SandboxError(f"a program in the sandbox cannot be ended within {seconds:g} seconds.") from None


@contextmanager
def _selector(pipes: list[int]) -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as ready:
        for pipe in pipes:
            ready.register(pipe, selectors.EVENT_READ)
        yield ready


def _exit_code(status: bytes) -> int | None:
    """What bubblewrap says, which it does of programs that were started; None: this one was not."""
    for line in status.decode(errors="replace").splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and isinstance(code := said.get("exit-code"), int):
            return code
    return None


def _ended(exit_code: int | None, stderr: str) -> Ended:
    if exit_code == 0:
        return "ok"
    if exit_code == _OUT_OF_CPU:
        return "time"
    last = stderr.strip().rpartition("\n")[2]
    return "memory" if last.startswith("MemoryError") else "error"


def _why(stderr: str) -> str:
    """What went wrong before the program was started, and what may help."""
    said = stderr.strip() or "bubblewrap said nothing"
    if any(os.strerror(code) in said for code in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL)):
        said += (
            ". This machine does not let this user make namespaces. On Ubuntu 24.04: sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0; on older Debian: sysctl kernel.unprivileged_userns_clone=1"
            "; in Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined --cap-add SYS_ADMIN"
        )
    return f"{said}. {_HOW}"
