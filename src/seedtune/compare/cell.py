"""One cell, in a process of its own (memory is measured, and a crash is its own): train, then evaluate what it saved.

    python -m seedtune.compare.cell FOLDER

reads FOLDER/cell.json and leaves FOLDER/result.json, or exits with 1 and says why on standard error.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from dataclasses import fields
from pathlib import Path
from threading import Thread
from typing import Any

from .. import build
from ..assess import assess
from ..engines.base import Engine
from ..engines.models import where
from ..errors import SeedtuneError
from ..journal.folder import read_lines, write_text
from ..recipe import RunConfig, data_and_rewards, first, resolve
from ..tasks.reward import resolve as found
from .trainee import Trainee


def main(folder: Path) -> None:
    """Raises SeedtuneError, and whatever the method raises."""
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    cell = json.loads((folder / "cell.json").read_text())
    of_training = [f.name for f in fields(RunConfig) if f.metadata["group"] == "Fleet" or f.name.startswith("vllm_")]
    of_training += ["perturbation", "master_dtype", "lowrank_vectors", "lowrank_embeddings", "engine"]
    to_measure = {k: v for k, v in cell["shared"].items() if k not in of_training}
    args = resolve({}, {**to_measure, "restore": "subtract", "drift_samples": 0, "temperature": 1.0})
    parts = data_and_rewards(args)
    if cell["function"]:
        for left in folder.iterdir():  # of a run that was cut off
            if left.name not in ("cell.json", "log.txt"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        _train(cell, parts, folder)
    megabytes = max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    points = []
    base = build.engine(args.model_name_or_path, None, args)
    for line in read_lines(folder / "checkpoints.jsonl") if cell["function"] else [_untrained()]:
        engine = build.engine(str(folder / line["model"]), None, args) if line["model"] else base
        points.append({**line, **_measure(engine, base, args, parts, cell["samples"])})
    result = {"points": points, "peak_megabytes": megabytes if cell["function"] else None}
    write_text(folder / "result.json", json.dumps(result, indent=2, default=str) + "\n")
    for line in points[:-1]:
        if line["model"]:
            shutil.rmtree(folder / line["model"])
    shutil.rmtree(folder / "run", ignore_errors=True)


def _end_with(parent: int) -> None:
    """A comparison that is killed must not leave a training behind that goes on by itself."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _train(cell: dict[str, Any], parts: dict[str, Any], folder: Path) -> None:
    shared = cell["shared"]
    trainee = Trainee(
        model=where(resolve({}, shared).model_name_or_path),
        train_dataset=[dict(row) for row in parts["train_dataset"]],
        reward_funcs=[reward.function for reward in build.rewards(parts["reward_funcs"])],
        max_completion_length=resolve({}, shared).max_completion_length,
        generations=cell["generations"],
        evaluations=cell["evaluations"],
        seed=cell["seed"],
        settings=cell["settings"],
        folder=folder,
        shared=shared,
        reward_weights=resolve({}, shared).reward_weights,
    )
    found(cell["function"])(trainee)
    if not (folder / "checkpoints.jsonl").exists():
        raise SeedtuneError(f"{cell['function']} ended without a checkpoint: it must call trainee.checkpoint().")


def _untrained() -> dict[str, Any]:
    return {"generations": 0, "tokens": 0, "seconds": 0.0, "model": None}


def _measure(engine: Engine, base: Engine, args: RunConfig, parts: dict[str, Any], samples: int) -> dict[str, Any]:
    rows = parts["eval_dataset"] or first(parts["train_dataset"], 64)
    result = assess(
        engine, args, rows, parts["reward_funcs"], parts["eval_funcs"], samples=samples, ks=(1, samples), base=base
    )
    metrics = {name: estimate.to_json() for name, estimate in result.estimates.items()}
    return {"metrics": metrics, "completions": result.greedy}


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except SeedtuneError as e:
        sys.exit(f"error: {e}")
