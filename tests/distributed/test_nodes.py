"""Real Ray nodes, in network namespaces of their own: the journal and the bytes of one replica, whoever is killed,
joins, or is cut off. Needs root and iproute2.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tiny import save_tiny

pytest.importorskip("ray")
BIN = Path(sys.executable).parent
TOKEN = "seedtune-test-0123456789abcdef0123456789abcdef"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"},
    "RAY_AUTH_TOKEN": TOKEN, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1", "RAY_health_check_initial_delay_ms": "2000", "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "3",
}  # fmt: skip


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


def _possible():
    if os.geteuid() or not shutil.which("ip"):
        return False
    name = f"seedtune-try-{os.getpid()}"  # two processes that collect tests must not meet
    tried = ip("netns", "add", name)
    ip("netns", "del", name)
    return tried.returncode == 0


pytestmark = [
    pytest.mark.ray,
    pytest.mark.namespaces,
    pytest.mark.skipif(not _possible(), reason="network namespaces need root and iproute2"),
]


class Nodes:
    """Namespaces on one bridge, at 10.77.0.1, 10.77.0.2, ...; their names are this process's own, as what a killed run
    left behind may take a while to go.
    """

    def __init__(self, count, folder):
        self.count, self.folder, self.tag = count, folder, f"st{os.getpid() % 100000}"
        self._ip("link", "add", f"{self.tag}b", "type", "bridge")
        self._ip("link", "set", f"{self.tag}b", "up")
        for n in range(1, count + 1):
            space, wire = self.space(n), f"{self.tag}v{n}"
            self._ip("netns", "add", space)
            self._ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", space)
            self._ip("link", "set", wire, "master", f"{self.tag}b", "up")
            self._ip("-n", space, "addr", "add", f"10.77.0.{n}/24", "dev", "eth0")
            self._ip("-n", space, "link", "set", "eth0", "up")
            self._ip("-n", space, "link", "set", "lo", "up")

    def space(self, n):
        return f"{self.tag}n{n}"

    @staticmethod
    def _ip(*words):
        done = ip(*words)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

    def command(self, n, *words, nice=0):
        return ["ip", "netns", "exec", self.space(n), "nice", "-n", str(nice), *map(str, words)]

    def start(self, n, nice=0):
        """A real `ray start`, with one core; `nice` makes it slow."""
        where = ["--head", "--port=6379", "--include-dashboard=false"] if n == 1 else ["--address=10.77.0.1:6379"]
        words = [BIN / "ray", "start", f"--node-ip-address=10.77.0.{n}", "--num-cpus=1", *where]
        if n == 1:
            words.append(f"--temp-dir={self.folder}")
        log = self.folder.with_suffix(f".start{n}")  # a pipe would be held open by what is started
        with log.open("w") as out:
            done = subprocess.run(self.command(n, *words, nice=nice), env=ENVIRONMENT, stdout=out, stderr=out)
        said = log.read_text()
        log.unlink()
        assert done.returncode == 0, said

    def cut(self, n, off=True):
        self._ip("link", "set", f"{self.tag}v{n}", "down" if off else "up")

    def pids(self, n):
        return [int(pid) for pid in ip("netns", "pids", self.space(n)).stdout.split()]

    def answering(self, n):
        """Processes of a node that are answering a chunk now."""
        found = []
        for pid in self.pids(n):
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::RayReplica.execute"):
                found.append(pid)
        return found

    def end(self):
        for n in range(1, self.count + 1):
            for pid in self.pids(n):
                os.kill(pid, signal.SIGKILL)
        for n in range(1, self.count + 1):
            ip("netns", "del", self.space(n))
        ip("link", "del", f"{self.tag}b")


@pytest.fixture
def nodes():
    folder = Path("/tmp") / f"st{os.getpid()}"  # sockets want short paths
    made = Nodes(3, folder)
    yield made
    made.end()
    shutil.rmtree(folder, ignore_errors=True)


def iterations(folder):
    file = folder / "journal.jsonl"
    return len(file.read_bytes().splitlines()) - 1 if file.exists() else 0


def test_three_nodes_of_unequal_speed_yield_the_bytes_of_one_replica(nodes, tmp_path):
    """A worker is killed in each of ten iterations, a node joins in the middle, and another is cut off for good. An
    iteration may pass between two looks, so there are more of them than kills.
    """
    model = save_tiny(tmp_path / "model", layers=3)
    rows = [{"prompt": f"say {n} and then some"} for n in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = "def short(completions, **_):\n    return [-float(len(c)) for c in completions]\n"
    (tmp_path / "reward.py").write_text(reward)
    settings = {
        "model_name_or_path": model, "dataset_name": tmp_path / "data.jsonl",
        "reward_funcs": f"{tmp_path / 'reward.py'}:short", "max_steps": 30, "population_size": 12, "sigma": 0.02,
        "learning_rate": 0.1, "max_completion_length": 32, "prompts_per_step": 4, "chunk_size": 4, "eval_steps": 15,
        "device": "cpu", "dtype": "float32", "threads": 1,
    }  # fmt: skip
    train = [BIN / "seedtune", "train", *(str(w) for key, value in settings.items() for w in (f"--{key}", value))]
    one, many = tmp_path / "one", tmp_path / "many"
    subprocess.run([*train, "--output_dir", one], env=ENVIRONMENT, check=True, capture_output=True)

    nodes.start(1)
    nodes.start(2, nice=5)
    on_ray = [*train, "--fleet", "ray", "--address", "10.77.0.1:6379", "--replicas", "3", "--replica_timeout", "60"]
    killed, joining, cut = {}, None, False  # killed: process by iteration
    log = tmp_path / "log.txt"
    with (
        log.open("w") as said,
        subprocess.Popen(
            nodes.command(1, *on_ray, "--output_dir", many), env=ENVIRONMENT, stdout=said, stderr=said
        ) as run,
        ThreadPoolExecutor(1) as aside,
    ):
        began = time.monotonic()
        while run.poll() is None and time.monotonic() - began < 400:
            t = iterations(many)
            if len(killed) < 10 and t >= 1 and t not in killed:
                busy = [pid for n in (1, 2, 3) for pid in nodes.answering(n) if pid not in killed.values()]
                if busy:
                    os.kill(busy[0], signal.SIGKILL)
                    killed[t] = busy[0]
            if len(killed) == 5 and joining is None:
                joining = aside.submit(nodes.start, 3, nice=15)
            if len(killed) == 10 and not cut:
                nodes.cut(2)
                cut = True
            time.sleep(0.02)
        run.kill()
    text = log.read_text()
    assert run.returncode == 0, text
    assert (len(killed), cut) == (10, True), text
    assert joining is not None
    assert joining.result() is None
    assert "room for 2 of 3" in text
    # Ray reports the death of a process once: the last one's may be part of its node's, and one that dies as it is
    # being replaced counts as a start that failed.
    assert text.count("is gone") >= 8, text
    assert (many / "journal.jsonl").read_bytes() == (one / "journal.jsonl").read_bytes()
    weights = "checkpoint-30/model.safetensors"
    assert (many / weights).read_bytes() == (one / weights).read_bytes()
