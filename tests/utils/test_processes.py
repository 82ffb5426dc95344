"""Several processes that a launcher started alike are told to be one; a file system or a system without locks is none
the worse for it.
"""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from runs import trainer
from seedtune.cli.main import main
from seedtune.compare import runner
from seedtune.errors import ConfigError, RunFolderError
from seedtune.journal import RunFolder
from seedtune.report import history
from seedtune.utils import locks
from seedtune.utils.processes import check_alone

TESTS = Path(__file__).parents[1]
RUN = """
import sys
from runs import trainer
from pathlib import Path
trainer(Path(sys.argv[1]), max_steps=1, max_completion_length=4).train()
print("trained")
"""

LAUNCHED = {
    "torchrun": {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    "first of torchrun": {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    "two nodes": {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"},
    "operator": {"WORLD_SIZE": "4", "RANK": "3"},
    "local only": {"WORLD_SIZE": "2", "LOCAL_RANK": "1"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
    "mpich": {"PMI_SIZE": "2", "PMI_RANK": "0"},
    "srun": {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
}
ALONE = [
    {},
    {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    {"WORLD_SIZE": "8"},  # a cloud that says how many machines there are
    {"WORLD_SIZE": "", "RANK": "0"},
    {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},  # a batch script: the tasks are not started yet
]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in {key for environment in [*LAUNCHED.values(), *ALONE] for key in environment}:
        monkeypatch.delenv(name, raising=False)


def become(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_a_process_of_several_is_refused(tmp_path, monkeypatch, launcher):
    become(monkeypatch, LAUNCHED[launcher])
    with pytest.raises(ConfigError, match=r"process \d of [24] that a launcher .*set fleet: ray with replicas: [24]"):
        trainer(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("environment", ALONE)
def test_a_process_alone_is_not(monkeypatch, environment):
    become(monkeypatch, environment)
    check_alone("local")
    check_alone("ray")


def test_nodes_of_a_cluster_may_have_ranks_and_two_drivers_may_not_be(monkeypatch):
    become(monkeypatch, LAUNCHED["operator"])
    check_alone("ray")
    become(monkeypatch, {"LOCAL_RANK": "0"})
    with pytest.raises(ConfigError, match=r"run it once, with python or `seedtune train`\.$"):
        check_alone("ray")


def test_the_command_line_refuses_before_anything_is_read_or_written(tmp_path, monkeypatch, capsys):
    become(monkeypatch, LAUNCHED["torchrun"])
    flags = ["--output_dir", str(tmp_path / "run"), "--dataset_name", "nowhere.jsonl", "--reward_funcs", "nowhere.py:f"]
    assert main(["train", *flags]) == 2
    assert "fleet: ray" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="fleet: ray"):
        next(runner.run(None, tmp_path / "compare", lambda *_: None))
    assert not list(tmp_path.iterdir())


def test_both_processes_of_torchrun_end_at_once_and_one_alone_trains(tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]

    def launched(count):
        command = [*launch, str(count), str(tmp_path / "run.py"), str(tmp_path / f"of-{count}")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)

    two = launched(2)
    assert two.returncode
    assert "ConfigError: this is process" in two.stderr
    assert "in use" not in two.stderr
    assert not (tmp_path / "of-2").exists()
    one = launched(1)
    assert "trained" in one.stdout, one.stderr


# --- locks ------------------------------------------------------------------------------------------------------------


class NoLocks:
    """What `fcntl` is where a file system has no locks."""

    LOCK_SH = LOCK_EX = LOCK_NB = 0

    def __init__(self, number):
        self.number = number

    def flock(self, *_):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, None])
def test_without_locks_a_run_goes_on_with_one_warning(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(locks, "fcntl", NoLocks(number) if number else None)
    trainer(tmp_path, max_steps=1).train()
    said = [r.getMessage() for r in caplog.records if "cannot be locked" in r.getMessage()]
    assert len(said) == 1
    assert "start only one there" in said[0]
    assert not history.held(tmp_path / "run")
    assert trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True).global_step == 2


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_process_holds_is_no_missing_lock(tmp_path, monkeypatch, number):
    first = RunFolder(tmp_path / "run")
    first.claim(resume=False)
    first.release()
    monkeypatch.setattr(locks, "fcntl", NoLocks(number))
    with pytest.raises(RunFolderError, match=rf"in use by process {os.getpid()} on "):
        RunFolder(tmp_path / "run").claim(resume=False)
    assert history.held(tmp_path / "run")


@pytest.mark.filterwarnings("ignore:.*multi-threaded")  # the child only imports
def test_nothing_is_imported_that_windows_does_not_have():
    """Seedtune is imported anew in a fork of this process, which has imported what others need of Linux: to import
    that for one test takes ten seconds.
    """
    import datasets  # noqa: F401
    from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel, TrainerCallback  # noqa: F401

    child = os.fork()
    if not child:
        code = 1
        try:
            for name in [name for name in sys.modules if name.partition(".")[0] == "seedtune"]:
                del sys.modules[name]
            sys.modules.update(dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios")))
            import_all("seedtune")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def import_all(package):
    elsewhere = ("vllm", "triton", "ray_", "compare.rl", "__main__", "sandbox.start")
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not any(part in module.name for part in elsewhere):
            importlib.import_module(module.name)
