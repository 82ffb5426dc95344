"""Tiny runs in processes of their own, killed -9 at moments that the command line names.

    python killed.py FOLDER MOMENT [MOMENT ...] [/ FOLDER MOMENT ...]

The run in FOLDER (low-rank, with a master of half the size, when its name begins with "low") is started, or resumed,
once a moment; exit codes are printed. A moment is a place in the run and how many times it is passed before:
"generate:7", "update:2", "journal:3", "checkpoint:1"; "journal" dies with half a line written, "checkpoint" between
two files. "-" is not killed. Processes are forked from this one, which has imported everything and done such a run
once: what a process loads, compiles and asks for at its first run is most of what a tiny run takes.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

from runs import ROWS, letters
from seedtune import ESConfig, ESTrainer
from seedtune.engines.hf import engine
from seedtune.engines.hf.decoder import Decoder
from seedtune.journal import store
from seedtune.perturb.master import CpuMaster
from seedtune.report.progress import Progress
from tiny import tiny_llama, tiny_tokenizer

LOW = {"perturbation": "lowrank", "antithetic": True, "master_dtype": "bfloat16"}
PLACES = ("generate", "update", "journal", "metrics", "checkpoint")


def train(folder: Path) -> None:
    trainer = ESTrainer(
        tiny_llama(),
        letters,
        ESConfig(
            output_dir=str(folder), max_steps=6, population_size=4, sigma=0.05, learning_rate=0.05, eval_steps=2,
            save_steps=2, max_completion_length=8, dtype="float32", device="cpu", reward_workers=0, threads=1,
            optimizer="momentum", save_total_limit=2, **(LOW if folder.name.startswith("low") else {}),
        ),
        ROWS,
        processing_class=tiny_tokenizer(),
        progress=Progress(),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=(folder / store.NAME).exists() and trainer.run.folder.holds_a_run)


def kill_at(moment: str) -> None:
    place, _, count = moment.partition(":")
    left = [int(count)]

    def passes() -> bool:
        left[0] -= 1
        return left[0] < 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: type | object, name: str) -> None:
        plain = getattr(owner, name)

        def wrapped(*args: object, **kwargs: object) -> object:
            if passes():
                die()
            return plain(*args, **kwargs)

        setattr(owner, name, wrapped)

    if place == "generate":
        before(Decoder, "forward")
    elif place == "update":
        before(CpuMaster, "write")  # the master has moved, the live weights have not
    elif place == "metrics":
        from seedtune.journal.folder import RunFolder

        before(RunFolder, "append_metrics")
    elif place == "checkpoint":
        before(engine, "save_file")  # the model is written, its state is not
    elif place == "journal":
        plain = store._append

        def torn(path: Path, text: str, new: bool = False) -> None:
            if passes():
                plain(path, text[: len(text) // 2], new)
                die()
            plain(path, text, new)

        store._append = torn


def in_a_process(folder: Path, moment: str) -> int:
    """The exit code: 0, or -9."""
    child = os.fork()
    if not child:
        code = 1
        try:
            if moment != "-":
                kill_at(moment)
            train(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    with TemporaryDirectory() as elsewhere:
        for name in ("run", "low"):
            train(Path(elsewhere, name))
    for job in " ".join(sys.argv[1:]).split(" / "):
        folder, *moments = job.split()
        print(*(in_a_process(Path(folder), moment) for moment in moments), flush=True)
