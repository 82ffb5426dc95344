"""Run as a program of its own, before bubblewrap: what bubblewrap cannot do. It makes a mount namespace with what the
sandbox will show, and a working folder whose size and number of files are limited; it starts bubblewrap, as nobody and
with the limits of the program; and it stays until all that bubblewrap has started is gone. When it gets SIGTERM, or
when the process that started it ends, it sees to that.

It loads nothing but the standard library, as it is started for every program. Its argument is a JSON object (`program`
makes it). If anything fails it says so on stderr, and bubblewrap is never started.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import signal
import sys
from typing import Any

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_NO_SUID, _NO_DEVICES, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 4096, 16384, 1 << 18
_PARENT_DEATH_SIGNAL, _SUBREAPER = 1, 36

#: Where it is put together: a folder that there is everywhere, hidden from this process and its children only.
_SCRATCH = "/tmp"
_libc = ctypes.CDLL(None, use_errno=True)


def main(spec: dict[str, Any]) -> None:
    """Run what `spec` describes. Raises OSError."""
    signals = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would not come
    end_with(spec["parent"], signal.SIGTERM)
    _check(_libc.prctl(_SUBREAPER, 1), "prctl")  # what bubblewrap leaves behind becomes a child of this process
    root = is_root()
    make_namespaces(root)
    furnish(spec)
    here = os.getpid()
    if (child := os.fork()) == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        become_bubblewrap(spec, root, here)
    while signal.sigwait(signals) == signal.SIGCHLD:
        if os.waitpid(child, os.WNOHANG)[0]:
            break
    end_all()


def make_namespaces(root: bool) -> None:
    """A mount namespace, in which nobody else sees what is mounted; who is not root needs one of users for it."""
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_NEW_MOUNTS | (0 if root else _NEW_USER)), "unshare")
    if not root:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{user} {user} 1")
        write("/proc/self/gid_map", f"{group} {group} 1")
    mount("none", "/", None, _RECURSIVE | _PRIVATE)


def furnish(spec: dict[str, Any]) -> None:
    """Make /tmp/root, what the program will see, and /tmp/work, where it may write."""
    # opened before they are hidden, should they be in /tmp
    sources = [(os.open(source, os.O_PATH | os.O_CLOEXEC), inside) for source, inside in spec["binds"]]
    os.umask(0o022)
    mount("tmpfs", _SCRATCH, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=755")
    root, work = f"{_SCRATCH}/root", f"{_SCRATCH}/work"
    for folder in (root, work, f"{_SCRATCH}/empty", *(f"{root}/{name}" for name in ("dev", "lib", "usr", "work"))):
        os.mkdir(folder)
    for link, target in (("lib64", "lib"), ("usr/lib", "../lib"), ("usr/lib64", "../lib")):
        os.symlink(target, f"{root}/{link}")
    for device in spec["devices"]:
        write(root + device, "")
    for source, inside in sources:
        place, from_here = root + inside, f"/proc/self/fd/{source}"
        os.makedirs(place if os.path.isdir(from_here) else os.path.dirname(place), exist_ok=True)
        if not os.path.isdir(from_here):
            write(place, "")
        mount(from_here, place, None, _BIND)
    for inside in spec["covered"]:
        mount(f"{_SCRATCH}/empty", root + inside, None, _BIND)
    with open(spec["code"], "rb") as code, open(f"{root}/main.py", "wb") as file:
        file.write(code.read())
    mount("tmpfs", work, "tmpfs", _NO_SUID | _NO_DEVICES, f"mode=1777,size={spec['disk']},nr_inodes={spec['files']}")


def become_bubblewrap(spec: dict[str, Any], root: bool, parent: int) -> None:
    """In a process of its own; does not return."""
    try:
        for name, value in spec["limits"].items():
            limit(getattr(resource, f"RLIMIT_{name}"), value)
        if root or linux_version() >= (5, 14):  # before that, all that the user runs counts
            limit(resource.RLIMIT_NPROC, spec["threads"] + 2)  # bubblewrap, and its first process in the sandbox
        if root:
            become_nobody()
        end_with(parent, signal.SIGKILL)
        os.chdir("/")
        os.execve(spec["bubblewrap"], spec["command"], {})
    except OSError as e:
        print(e, file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def end_all() -> None:
    """Kill all children, and theirs, which become children of this process when their parents end; wait for them."""
    while True:
        with open("/proc/thread-self/children") as file:
            for child in file.read().split():
                os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def is_root() -> bool:
    """Whether this process may become another user: it is root, where there are others."""
    return os.geteuid() == 0 and sum(count for _, count in ids("uid")) > 1


def become_nobody() -> None:
    """Go on as a user and a group that nobody else is, so that limits per user are this program's alone."""
    chosen = []
    for kind in ("gid", "uid"):
        first, count = max(ids(kind), key=lambda ids: ids[1])
        count = min(count, 2**31 - 1 - first)
        chosen.append(first + random.SystemRandom().randrange(count // 2, count))
    group, user = chosen
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


def ids(kind: str) -> list[tuple[int, int]]:
    """The ranges of users (uid) or groups (gid) that there are here: the first, and how many."""
    with open(f"/proc/self/{kind}_map") as file:
        return [(int(line.split()[0]), int(line.split()[2])) for line in file]


def linux_version() -> tuple[int, ...]:
    """Major and minor."""
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in os.uname().release.split(".")[:2])


def end_with(parent: int, by: signal.Signals) -> None:
    """Get this signal when `parent`, the process that started this one, ends."""
    _check(_libc.prctl(_PARENT_DEATH_SIGNAL, by), "prctl")
    if os.getppid() != parent:  # it has ended before
        os._exit(1)


def limit(what: int, value: int) -> None:
    """Set a limit of this process and of what it becomes, which cannot be raised again."""
    _, most = resource.getrlimit(what)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    says_so = what == resource.RLIMIT_CPU and value != most  # by a signal of its own, a second before it kills
    resource.setrlimit(what, (value, value + says_so))


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2). Raises OSError."""
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None)
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()), f"mount {kind or source} on {target}")


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _check(returned: int, what: str) -> None:
    if returned:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except OSError as e:
        print(e, file=sys.stderr)
        sys.exit(1)
