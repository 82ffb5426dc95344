"""Programs that reward functions start: signals reach them, and none is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from seedtune.errors import RewardError
from seedtune.rewards.call import Batch
from seedtune.rewards.function import Reward
from seedtune.rewards.scorer import Scorer
from seedtune.utils.signals import Interrupts, reset

pytestmark = pytest.mark.skipif(not hasattr(os, "setsid"), reason="POSIX signals")


def batch(*texts, **columns):
    return Batch(["q"] * len(texts), list(texts), [[1]] * len(texts), columns)


def scored(function, *texts, timeout=60):
    with Scorer([Reward(function)], workers=1, timeout=timeout) as scorer:
        return scorer.gather([scorer.submit(batch(*texts))])[0][0].rewards


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as f:
            return f.read().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(process):
    for _ in range(100):
        if not is_alive(process):
            return True
        time.sleep(0.05)
    return False


def exit_code_after(number):
    """Of a program that is sent a signal."""

    def grade(completions, **kwargs):
        program = subprocess.Popen(["sleep", "600"])
        time.sleep(0.1)
        program.send_signal(number)
        return [float(program.wait(timeout=10)) for _ in completions]

    return grade


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGUSR1])
def test_a_signal_ends_what_a_reward_function_starts(number):
    assert scored(exit_code_after(number), "a") == [-number]


def test_a_fork_of_the_worker_ends_by_a_signal():
    def grade(completions, **kwargs):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
        time.sleep(0.2)
        child.terminate()
        child.join(10)
        return [float(child.exitcode or 0) for _ in completions]

    assert scored(grade, "a") == [-signal.SIGTERM]


def _tell_and_sleep(pipe):
    pipe.send("here")
    time.sleep(600)


def test_a_fork_of_the_run_ends_by_a_signal():
    with Interrupts() as interrupts:
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_tell_and_sleep, args=(theirs,))
        child.start()
        assert ours.recv() == "here"  # Python forgets signals that come while a fork begins
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
        assert interrupts.count == 0


def test_the_worker_itself_outlives_a_signal():
    def grade(completions, **kwargs):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        time.sleep(0.1)
        return [1.0]

    assert scored(grade, "a") == [1]


def test_what_the_run_blocks_or_ignores_does_not_reach_programs(tmp_path):
    """A shell without job control starts background jobs with SIGINT ignored; Ray blocks it."""
    code = (
        "import signal, sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})\n"
        "from test_children import exit_code_after, scored\n"
        "print([scored(exit_code_after(n), 'a')[0] for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[-2.0, -15.0, -10.0]\n", done.stderr


def test_a_reset_keeps_what_nohup_asked_for():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        reset()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def leaves(folder):
    """Leaves three programs behind: a child, one in a session of its own, and one whose parent has ended."""

    def grade(completions, **kwargs):
        started = [subprocess.Popen(["sleep", "600"]), subprocess.Popen(["sleep", "600"], start_new_session=True)]
        orphan = subprocess.check_output(["sh", "-c", "sleep 600 >/dev/null & echo $!"], text=True)
        (folder / "left").write_text(" ".join([*(str(p.pid) for p in started), orphan]))
        if completions[0] == "hang":
            time.sleep(600)
        if completions[0] == "die":
            os._exit(3)
        return [0.0] * len(completions)

    return grade


@pytest.mark.parametrize("how", ["return", "hang", "die"])
def test_nothing_is_left_behind(tmp_path, how):
    if how == "return":
        scored(leaves(tmp_path), how)
    else:
        with pytest.raises(RewardError, match="did not return" if how == "hang" else "died while"):
            scored(leaves(tmp_path), how, timeout=5 if how == "hang" else 60)
    left = [int(pid) for pid in (tmp_path / "left").read_text().split()]
    if how == "die":  # who starts a session of its own and loses its parent is out of reach
        os.kill(left.pop(1), signal.SIGKILL)
    assert [ends(process) for process in left] == [True] * len(left)


def test_nor_when_the_run_is_killed(tmp_path):
    code = (
        f"import pathlib, sys, time\nsys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from test_children import Reward, Scorer, batch, leaves\n"
        f"scorer = Scorer([Reward(leaves(pathlib.Path({str(tmp_path)!r})))], workers=1, timeout=60)\n"
        "scorer.gather([scorer.submit(batch('return'))])\nprint('scored', flush=True)\ntime.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "scored\n"
    run.kill()
    run.communicate()
    assert all(ends(int(pid)) for pid in (tmp_path / "left").read_text().split())


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork", None])
def test_functions_may_start_processes_by_every_method(method):
    """Those that were spawned did not know loky's method, and were started again without end."""

    def pooled(completions, **kwargs):
        with multiprocessing.get_context(method).Pool(1) as pool:
            return pool.map(len, completions)

    with Scorer([Reward(pooled)], workers=1, timeout=60) as scorer:
        scores = scorer.gather([scorer.submit(Batch(["q"], ["ab"], [[1]], {}))])
    assert scores[0][0].rewards == [2]
