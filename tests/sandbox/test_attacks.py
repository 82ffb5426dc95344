"""What a hostile program tries, and what comes of it: nothing."""

from __future__ import annotations

import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from sandboxes import needs_bubblewrap, run
from seedtune import sandbox
from seedtune.sandbox import seccomp

pytestmark = needs_bubblewrap
MIB = 2**20


def refused(code, error="PermissionError", **limits):
    """Whether a program ends with this error, and not of itself."""
    result = run(code, **limits)
    assert result.ended in ("error", "memory"), result
    assert error in result.stderr.strip().rpartition("\n")[2], result
    return True


# --- processes --------------------------------------------------------------------------------------------------------


def test_fork_bomb():
    assert refused("import os\nwhile True: os.fork()")


@pytest.mark.parametrize(
    "start",
    [
        "os.posix_spawn(sys.executable, [sys.executable, '-c', 'pass'], {})",
        "subprocess.run([sys.executable, '-c', 'pass'])",
        "os.forkpty()",
        "multiprocessing.get_context('fork').Process(target=print).start()",
    ],
)
def test_no_way_to_start_a_process(start):
    assert refused(f"import multiprocessing, os, subprocess, sys\n{start}", "Error")


def test_a_daemon_that_would_outlive_the_program():
    assert refused("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)")


def test_threads_are_counted():
    result = run(
        """
        import threading
        threading.stack_size(2**16)
        stop, started = threading.Event(), 0
        try:
            for _ in range(10_000):
                threading.Thread(target=stop.wait, daemon=True).start()
                started += 1
        except RuntimeError:
            print(started)
        stop.set()
        """,
        threads=10,
    )
    assert int(result.stdout) <= 9  # and the main thread


def test_threads_of_others_do_not_count():
    from concurrent.futures import ThreadPoolExecutor

    code = """
        import threading
        stop = threading.Event()
        for _ in range(15): threading.Thread(target=stop.wait, args=(1,)).start()
        print("all")
        """
    with ThreadPoolExecutor(4) as pool:
        assert [r.stdout for r in pool.map(lambda _: run(code, threads=20), range(4))] == ["all\n"] * 4


@pytest.mark.parametrize("victim", ["os.getppid()", "1", "-1", "0", "HOST"])
def test_signals_do_not_leave_the_sandbox(victim):
    """0 is the program's own group: it may end itself, and nothing else."""
    result = run(
        f"""
        import os, signal
        try: os.kill({victim.replace("HOST", str(os.getpid()))}, signal.SIGKILL)
        except OSError: pass
        print("done", os.getppid())
        """
    )
    assert victim == "0" or result.stdout.startswith("done"), result
    assert run("print(1)").ok


def test_signals_that_it_ignores_do_not_save_it():
    code = """
        import signal, time
        for n in range(1, 65):
            try: signal.signal(n, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: time.sleep(1)
        """
    assert run(code, seconds=1).ended == "time"


def test_a_program_that_closes_its_outputs_is_still_waited_for():
    assert run("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(1000)", seconds=1).ended == "time"


def test_all_cores_at_once_count():
    code = """
        import hashlib, threading
        def burn():
            while True: hashlib.sha256(b"a" * 10**7)
        for _ in range(8): threading.Thread(target=burn).start()
        """
    assert run(code, seconds=2).ended == "time"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_process_that_asked(how):
    """As when a scoring process is killed."""
    program = "from seedtune import sandbox; sandbox.run('import time; time.sleep(1000)', '', sandbox.Limits(1000))"
    asking = subprocess.Popen([sys.executable, "-c", program])
    until = time.monotonic() + 60
    while len(family := psutil.Process(asking.pid).children(recursive=True)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(family) >= 3  # bubblewrap, its first process, and the program
    asking.send_signal(how)
    asking.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_nothing_is_left_of_a_sandbox_whose_start_was_cut_off():
    """Whenever the process that asked is killed. What it started is known by its arguments or its limit of CPU time."""
    seconds = 987_654
    program = (
        "from seedtune import sandbox; sandbox.check(); print('ready', flush=True);"
        f"sandbox.run('import time; time.sleep(1000)', '', sandbox.Limits({seconds}))"
    )

    def left(asking):
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                starts = any(f'"parent": {asking},' in argument for argument in process.cmdline())
                if starts or process.rlimit(psutil.RLIMIT_CPU)[0] == seconds + 1:
                    found.append(process)
        return found

    for milliseconds in range(0, 70, 6):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as asking:
            asking.stdout.readline()
            time.sleep(milliseconds / 1000)
            asking.kill()
        until = time.monotonic() + 60
        while left(asking.pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert not left(asking.pid), milliseconds


def test_nothing_runs_any_more_when_it_was_killed_for_time():
    before = {p.pid for p in psutil.process_iter()}
    mine = psutil.Process()
    others = before - {mine.pid, *(p.pid for p in mine.parents())}  # tests in another process have sandboxes, too
    run("import time\nprint('x', flush=True)\ntime.sleep(1000)", seconds=1)
    left = [p for p in psutil.process_iter(["name", "cmdline"]) if p.pid not in before]
    assert not [p for p in left if "/main.py" in (p.info["cmdline"] or []) and others.isdisjoint(_parents(p))]


def _parents(process):
    try:
        return {p.pid for p in process.parents()}
    except psutil.NoSuchProcess:
        return set()


# --- memory and disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grow",
    [
        "x = bytearray(2**30)",
        "x = []\nwhile True: x.append(bytearray(2**20))",
        "import mmap\nx = [mmap.mmap(-1, 2**26) for _ in range(100)]",
        "x = 'a'\nwhile True: x += x",
        "x = 9 ** 9 ** 9",
    ],
)
def test_memory(grow):
    result = run(grow, memory=128 * MIB, seconds=2)
    assert result.ended in ("memory", "error", "time"), result  # the last one computes until its time is up
    assert not result.ok


def test_memory_that_no_process_has():
    """Files in memory and shared segments would stay outside the limit of a process."""
    assert refused("import os\nos.memfd_create('x')")
    assert refused("import multiprocessing.shared_memory as m\nm.SharedMemory(create=True, size=2**20)", "Error")


def test_deep_recursion_ends_the_program_only():
    code = "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())"
    assert run(code).ended in ("error", "memory")


def test_filling_the_disk():
    result = run(
        """
        import errno
        for n in range(100):
            try:
                with open(f"f{n}", "wb") as file:
                    for _ in range(100): file.write(b"a" * 2**20)
            except OSError as e:
                print(errno.errorcode[e.errno])
        """,
        disk=8 * MIB,
    )
    assert set(result.stdout.split()) == {"EFBIG", "ENOSPC"}


def test_a_file_with_a_hole():
    assert refused("import os\nos.truncate('f', 0) if open('f', 'w').close() else os.truncate('f', 2**40)", "OSError")


@pytest.mark.parametrize("make", ["open(str(n), 'w').close()", "os.mkdir(str(n))", "os.symlink('x', str(n))"])
def test_exhausting_inodes(make):
    result = run(
        f"""
        import os
        n = 0
        try:
            while n < 10**5: {make}; n += 1
        except OSError as e: print(n, e.strerror)
        """,
        files=50,
    )
    assert result.stdout == "50 No space left on device\n"


def test_open_files():
    assert refused("x = []\nwhile True: x.append(open('/dev/null'))", "Too many open files")


def test_pipes_cannot_be_widened():
    assert refused("import fcntl, os\nfcntl.fcntl(os.pipe()[0], 1031, 2**20)")


def test_a_gigabyte_of_output_is_never_in_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for stream in ("stdout", "stderr"):
        code = f"import sys\nfor _ in range(1024): sys.{stream}.write('a' * 2**20)"
        result = run(code, output=100_000, seconds=60)
        assert result.ended == "output"
        assert len(getattr(result, stream)) == 100_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # in KiB


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_of_the_host_are_not_there(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    paths = [str(secret), __file__, sandbox.__file__, os.path.expanduser("~"), "/etc/passwd", "/etc", "/proc", "/sys",
             "/home", "/root", "/var", "/usr/bin", "/bin/sh", "/tmp", "/run"]  # fmt: skip
    result = run(f"import os\nprint([p for p in {paths!r} if os.path.lexists(p)])")
    assert result.stdout == "[]\n"


def test_what_is_there():
    result = run("import os\nprint(sorted(os.listdir('/')), sorted(os.listdir('/dev')), os.listdir('.'))")
    assert result.stdout == (
        "['dev', 'lib', 'lib64', 'main.py', 'python', 'usr', 'work'] ['null', 'random', 'urandom', 'zero'] []\n"
    )


@pytest.mark.parametrize("path", ["/proc/self/maps", "/proc/1/environ", "/proc/sys/kernel/core_pattern", "/proc/kcore"])
def test_proc_is_not_there(path):
    assert refused(f"open({path!r})", "FileNotFoundError")


def test_symlinks_lead_nowhere(tmp_path):
    (tmp_path / "secret").write_text("secret")
    code = f"import os\nos.symlink({str(tmp_path)!r}, 'link')\nopen('link/secret')"
    assert refused(code, "FileNotFoundError")
    assert refused("open('/work/../../../../../../etc/passwd')", "FileNotFoundError")


def test_writing_outside():
    result = run(
        """
        import os
        for folder in ("/", "/lib", "/dev", "/python", "/usr", os.path.dirname(os.__file__)):
            try: open(folder + "/x", "w")
            except OSError as e: print(e.strerror)
        for path in ("/main.py", os.__file__, "/dev"):
            try: os.chmod(path, 0o777)
            except OSError as e: print(e.strerror)
        open("/work/mine", "w").write("mine")
        """
    )
    assert result.stdout == "Read-only file system\n" * 9
    assert result.ok


def test_programs_do_not_see_one_another():
    run("open('left', 'w').write('1')")
    assert run("import os\nprint(os.listdir('/work'))").stdout == "[]\n"


def test_devices_are_not_made():
    assert refused("import os, stat\nos.mknod('sda', stat.S_IFBLK | 0o666, os.makedev(8, 0))")


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    assert run("import os\nprint(dict(os.environ))").stdout == "{'MALLOC_ARENA_MAX': '1', 'PWD': '/work'}\n"


def test_no_installed_packages():
    for package in ("numpy", "seedtune", "pip"):
        assert refused(f"import {package}", "No module named")


# --- what is inherited ------------------------------------------------------------------------------------------------


def test_open_files_are_not_inherited(tmp_path):
    with open(tmp_path / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        result = run(
            """
            import os
            for n in range(4096):
                try: os.fstat(n)
                except OSError: continue
                print(n)
            """
        )
    assert result.stdout == "0\n1\n2\n"


def test_standard_streams_cannot_be_turned_round():
    result = run(
        """
        import os
        for act in (lambda: os.write(0, b"x"), lambda: os.read(1, 1), lambda: os.read(2, 1),
                    lambda: os.ftruncate(0, 2**30), lambda: os.lseek(1, 0, 0)):
            try: act()
            except OSError: print("refused")
        """,
        "text",
    )
    assert result.stdout == "refused\n" * 5


def test_no_terminal():
    assert refused("import fcntl\nfcntl.ioctl(0, 0x5412, b'x')")  # TIOCSTI: types for the user
    assert refused("open('/dev/tty')", "FileNotFoundError")


# --- network and kernel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["INET", "INET6", "NETLINK", "PACKET", "VSOCK", "ALG"])
def test_no_network(family):
    assert refused(f"import socket\nsocket.socket(socket.AF_{family}, socket.SOCK_STREAM)")


def test_abstract_sockets_of_the_host_are_not_there():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0seedtune-test")
        server.listen()
        code = "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0seedtune-test')"
        assert refused(code, "ConnectionRefusedError")


def test_ports_of_the_host_are_not_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert refused(code)


def test_every_denied_call_is_denied():
    column, _ = seccomp.MACHINES[platform.machine()]
    numbers = {name: number[column] for name, number in seccomp.DENIED.items() if number[column] is not None}
    result = run(
        f"""
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        for name, number in {numbers!r}.items():
            if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != errno.EPERM: print(name)
        for number in (435, 451, 500, 2**30 + 1):
            if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != errno.ENOSYS: print(number)
        """
    )
    assert result.ok, result
    assert result.stdout == ""


def test_no_rights_to_gain():
    result = run(
        """
        import ctypes, os
        libc = ctypes.CDLL(None)
        no_new_privileges = libc.prctl(39, 0, 0, 0, 0)
        print(os.getuid(), os.getgid(), os.getgroups() in ([], [65534]), no_new_privileges)
        for become in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
            try: become()
            except OSError as e: print(type(e).__name__)
        """
    )
    assert result.stdout.splitlines()[0] == "1000 1000 True 1"
    assert len(result.stdout.splitlines()) == 4


def test_setuid_programs_are_not_there():
    for program in ("/usr/bin/su", "/bin/su", "/usr/bin/sudo", "/usr/bin/passwd", "/usr/bin/bwrap"):
        assert refused(f"import os\nos.execv({program!r}, ['x'])", "FileNotFoundError")


def test_what_it_executes_is_in_the_same_sandbox():
    code = """
        import os, sys
        os.execv(sys.executable, [sys.executable, "-c", "import os; os.fork()"])
        """
    assert refused(code)


def test_limits_cannot_be_raised():
    result = run(
        """
        import resource
        for name in ("AS", "CPU", "FSIZE", "NOFILE", "NPROC", "CORE"):
            what = getattr(resource, "RLIMIT_" + name)
            try: resource.setrlimit(what, (resource.RLIM_INFINITY,) * 2); print(name)
            except (OSError, ValueError): pass
        """
    )
    assert result.ok
    assert result.stdout == ""
