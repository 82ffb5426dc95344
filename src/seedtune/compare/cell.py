"""One cell, in a process of its own (so that its memory can be measured, and a crash ends no other cell): train, then
evaluate the checkpoints.

    python -m seedtune.compare.cell FOLDER

reads FOLDER/cell.json and writes FOLDER/result.json, or exits with 1 and prints the reason to standard error.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ..config.run_config import RunConfig
from ..engines.base import Engine
from ..engines.loading import pretrained_name
from ..errors import SeedtuneError
from ..evaluation.evaluate import evaluate, texts_read
from ..rewards.function import reward_functions
from ..rewards.lookup import resolve as resolve_function
from ..training import factory
from ..training.recipe import data_and_rewards, first, resolve
from ..utils.files import read_lines, write_text
from ..utils.processes import exit_with_parent
from .context import MethodContext
from .results import renamed


def main(folder: Path) -> None:
    """Raises SeedtuneError, and whatever the method raises."""
    exit_with_parent(os.getppid())
    cell = renamed(json.loads((folder / "cell.json").read_text()))
    args = resolve({}, {**cell["shared"], "temperature": 1.0})
    parts = data_and_rewards(args)
    if cell["function"]:
        for file in folder.iterdir():  # of a training that was interrupted
            if file.name not in ("cell.json", "log.txt"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        _train(cell, parts, folder)
    megabytes = _peak_megabytes()
    points = []
    base = factory.inference_engine(args.model_name_or_path, args)
    for line in read_lines(folder / "checkpoints.jsonl") if cell["function"] else [_untrained()]:
        engine = factory.inference_engine(str(folder / line["model"]), args) if line["model"] else base
        points.append({**line, **_measure(engine, base, args, parts, cell["samples"])})
    result = {"points": points, "peak_megabytes": megabytes if cell["function"] else None}
    write_text(folder / "result.json", json.dumps(result, indent=2, default=str) + "\n")
    for line in points[:-1]:
        if line["model"]:
            shutil.rmtree(folder / line["model"])
    shutil.rmtree(folder / "run", ignore_errors=True)


def _peak_megabytes() -> float | None:
    """The most memory that this process, or one that it started, held; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def _train(cell: dict[str, Any], parts: dict[str, Any], folder: Path) -> None:
    shared, factory_of = cell["shared"], parts["environment_factory"]
    args = resolve({}, shared)
    context = MethodContext(
        model=pretrained_name(args.model_name_or_path),
        train_dataset=[dict(row) for row in parts["train_dataset"]],
        reward_funcs=[reward.function for reward in reward_functions(parts["reward_funcs"], args.reward_args)],
        max_completion_length=args.max_completion_length,
        num_completions=cell["num_completions"],
        evaluations=cell["evaluations"],
        seed=cell["seed"],
        settings=cell["settings"],
        folder=folder,
        shared=shared,
        reward_weights=args.final_reward_weights,
        stop_strings=args.stop_strings,
        tools=[resolve_function(tool, "tool") for tool in parts["tools"] or ()] or None,
        environment_factory=factory_of and resolve_function(factory_of, "tool"),
    )
    resolve_function(cell["function"])(context)
    if not (folder / "checkpoints.jsonl").exists():
        raise SeedtuneError(f"{cell['function']} ended without a checkpoint: it must call context.checkpoint().")


def _untrained() -> dict[str, Any]:
    return {"num_completions": 0, "tokens": 0, "seconds": 0.0, "model": None}


def _measure(engine: Engine, base: Engine, args: RunConfig, parts: dict[str, Any], samples: int) -> dict[str, Any]:
    rows = parts["eval_dataset"] or first(parts["train_dataset"], 64)
    tools, rewards = factory.tools_and_rewards(
        parts["tools"], parts["environment_factory"], parts["reward_funcs"], args
    )
    reads = texts_read(rewards, parts["eval_funcs"], args.reward_args)
    spec = factory.eval_spec(args, **({} if reads else {"samples": samples, "ks": (1, samples)}))
    result = evaluate(engine, spec, rows, rewards or (), parts["eval_funcs"], base=base, tools=tools)
    metrics = {name: estimate.to_json() for name, estimate in result.estimates.items()}
    return {"metrics": metrics, "completions": result.greedy}


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except SeedtuneError as e:
        sys.exit(f"error: {e}")
