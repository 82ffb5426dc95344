"""Processes: those that must not outlive the one that started them, nor leave behind what they started; and those that
stand beside others.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

from ..errors import ConfigError


def lead_session() -> None:
    """Make this process the leader of a session and of a process group, so that what it starts can be ended with it."""
    if hasattr(os, "setsid"):
        with suppress(PermissionError):  # it is one already
            os.setsid()


#: What launchers call the number of processes that they start, and which of them this one is.
_RANKS = {
    "WORLD_SIZE": ("RANK", "LOCAL_RANK"),  # torchrun, accelerate launch, deepspeed
    "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_RANK",),
    "PMI_SIZE": ("PMI_RANK",),
    "SLURM_STEP_NUM_TASKS": ("SLURM_PROCID",),
}


def check_alone(fleet: str) -> None:
    """Raise ConfigError in a process that a launcher started together with others, to do the same as they. With `fleet`
    ray, only where it is one of several on this machine: others may be the nodes of the cluster.
    """
    for size, ranks in _RANKS.items():
        count = os.environ.get(size, "")
        rank = next((os.environ[name] for name in ranks if name in os.environ), None)
        may_be_nodes = fleet == "ray" and "LOCAL_RANK" not in os.environ
        if not count.isdecimal() or int(count) < 2 or rank is None or may_be_nodes:
            continue
        how = "" if fleet == "ray" else f", and set fleet: ray with replicas: {count}"
        raise ConfigError(
            f"this is process {rank} of {count} that a launcher (torchrun, accelerate launch, mpirun) started alike: "
            f"{size} is {count}. Seedtune is one process and starts its replicas itself: run it once, with python or "
            f"`seedtune train`{how}."
        )


def exit_with_parent(parent: int) -> None:
    """End this process when `parent`, the id of the process that started it, has ended, however it ended; and its
    process group, when it leads one. Returns at once; a thread watches.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():
            kill_family(os.getpid())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def kill_family(leader: int) -> None:
    """Kill what process `leader` started, also in sessions of its own, then the process group that it leads: that has
    whatever was left behind by those that have ended, `leader` itself among them.
    """
    with suppress(ImportError):  # comes with accelerate; not with every build
        import psutil

        with suppress(psutil.Error):
            for process in psutil.Process(leader).children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
