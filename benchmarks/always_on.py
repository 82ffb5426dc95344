"""What measuring costs while a run goes on: reliability, and how far each step moves the center.

    python benchmarks/always_on.py [RECIPE] [--max_steps N]

The share of an iteration's time; medians over iterations, the first left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import report
from seedtune import ESTrainer
from seedtune.config import yaml_file
from seedtune.report import history
from seedtune.training.recipe import data_and_rewards, resolve
from seedtune.training.step_control import StepControl

RECIPE = Path(__file__).parents[1] / "recipes" / "conciseness-smollm2.yaml"
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
    parser.add_argument("--max_steps", type=int, default=6)
    parsed = parser.parse_args()
    StepControl.after = timed(StepControl.after)  # type: ignore[method-assign]  # from outside, to time it
    StepControl.learning_rate = timed(StepControl.learning_rate)  # type: ignore[method-assign]  # likewise
    with tempfile.TemporaryDirectory() as folder:
        given = {"output_dir": folder, "max_steps": parsed.max_steps, "eval_steps": parsed.max_steps, "stop_at": []}
        args = resolve(yaml_file.read(parsed.recipe), given)
        trainer = ESTrainer(model=args.model_name_or_path, args=args, **data_and_rewards(args))
        trainer.train()
        lines = history.read(Path(folder)).iterations
        iterations = [sum(value for key, value in line.items() if key.startswith("time/")) for line in lines]
    measuring = [a + b for a, b in zip(SPENT[::2], SPENT[1::2], strict=True)]
    report({
        "seconds_per_iteration": statistics.median(iterations[1:]),
        "seconds_measuring": statistics.median(measuring[1:]),
        "share": statistics.median(measuring[1:]) / statistics.median(iterations[1:]),
    }, None)  # fmt: skip


if __name__ == "__main__":
    main()
