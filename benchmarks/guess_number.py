"""Whether a model learns to use feedback over several turns: `examples/guess_number.py` is trained as it stands, then
the model before and the model after play the same 150 games, of another seed than training, decoded greedily.

* solved_before, solved_after: the share of games in which the number is found within the guesses that are allowed.
* gain, gain_ci95: the mean difference per game, and half of its 95 % interval.
* won, lost: games that only the trained model solves, and only the base model.
* guesses_before, guesses_after: guesses per game.
* iterations: of training; `--minutes` ends it after so long, and what was reached by then counts.

A model that was trained in `--output_dir` before is not trained again.
"""

from __future__ import annotations

import argparse
import runpy
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from common import report
from seedtune import ESConfig
from seedtune.evaluation import statistics
from seedtune.evaluation.evaluate import Evaluation, evaluate
from seedtune.training import factory
from seedtune.utils.files import read_lines

EXAMPLE = Path(__file__).parents[1] / "examples" / "guess_number.py"
GAMES, SEED = 150, 1000


class Limit(TrainerCallback):
    """Ends training after so many minutes."""

    def __init__(self, minutes: float) -> None:
        self.until = time.monotonic() + 60 * minutes

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = time.monotonic() > self.until
        return control


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--output_dir", default="runs/guess-number")
    args = parser.parse_args()
    example = runpy.run_path(str(EXAMPLE))
    trained = Path(args.output_dir) / "trained"
    if not trained.exists():
        trainer = example["main"](args.model, output_dir=args.output_dir, callbacks=[Limit(args.minutes)])
        trainer.save_model(trained)
    settings = ESConfig(output_dir=args.output_dir, **example["SETTINGS"])
    tools, rewards = factory.tools_and_rewards(None, example["GuessNumber"], None, settings)
    iterations = max(line["step"] for line in read_lines(Path(args.output_dir) / "metrics.jsonl"))

    def play(model: str | Path) -> Evaluation:
        spec = factory.eval_spec(settings, seed=SEED)
        return evaluate(
            factory.inference_engine(str(model), settings), spec, example["games"](GAMES), rewards, tools=tools
        )

    before, after = play(args.model), play(trained)
    solved = [np.array([row["reward"] for row in found.greedy]) for found in (before, after)]
    gain = statistics.mean(solved[1] - solved[0])
    report(
        {
            "solved_before": float(solved[0].mean()),
            "solved_after": float(solved[1].mean()),
            "gain": gain.mean,
            "gain_ci95": gain.half,
            "won": int((solved[1] > solved[0]).sum()),
            "lost": int((solved[1] < solved[0]).sum()),
            "guesses_before": before.estimates["tools/call_frequency"].mean,
            "guesses_after": after.estimates["tools/call_frequency"].mean,
            "iterations": iterations,
        },
        args.json,
    )


if __name__ == "__main__":
    main()
