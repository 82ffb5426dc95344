"""What measuring costs while a run goes on: reliability, and how far each step moves the center.

    python benchmarks/always_on.py [RECIPE] [--max_steps N] [--auto]

Means over all iterations but the first, with their evaluations: steps of a fixed learning rate are measured where they
are evaluated. `most_seconds_measuring`: in the iteration in which it was most.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import report
from seedtune import ESTrainer
from seedtune.config import yaml_file
from seedtune.report import history
from seedtune.training.recipe import data_and_rewards, resolve
from seedtune.training.step_control import StepControl

RECIPE = Path(__file__).parents[1] / "recipes" / "conciseness-smollm2.yaml"
PARTS = ("learning_rate", "before", "after")
SPENT: list[float] = []


def timed(method: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            SPENT.append(time.perf_counter() - began)

    return wrapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    parser.add_argument("--max_steps", type=int, default=12)
    parser.add_argument("--auto", action="store_true", help="learning_rate: auto, whatever the recipe says")
    parsed = parser.parse_args()
    for name in PARTS:
        setattr(StepControl, name, timed(getattr(StepControl, name)))
    with tempfile.TemporaryDirectory() as folder:
        given = {"output_dir": folder, "max_steps": parsed.max_steps, "stop_at": []}
        if parsed.auto:
            given |= {"learning_rate": "auto"}
        args = resolve(yaml_file.read(parsed.recipe), given)
        trainer = ESTrainer(model=args.model_name_or_path, args=args, **data_and_rewards(args))
        trainer.train()
        found = history.read(Path(folder))
        spent = {line["step"]: _seconds(line) for line in found.iterations}
        evaluated = {line["step"]: _seconds(line) for line in found.evaluations}
    measuring = np.reshape(SPENT, (-1, len(PARTS))).sum(1)[1:]
    iterations = [seconds + evaluated.get(step, 0.0) for step, seconds in spent.items()][1:]
    report({
        "seconds_per_iteration": float(np.mean(iterations)),
        "seconds_measuring": float(np.mean(measuring)),
        "most_seconds_measuring": float(np.max(measuring)),
        "share": float(np.sum(measuring) / np.sum(iterations)),
    }, None)  # fmt: skip


def _seconds(line: dict[str, Any]) -> float:
    return float(sum(value for key, value in line.items() if key.startswith("time/")))


if __name__ == "__main__":
    main()
