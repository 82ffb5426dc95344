"""Low rank against full rank on conciseness, per member-evaluation: three seeds each, at the best sigma and learning
rate that we found for each (LOG.md). Writes benchmarks/learning.md and benchmarks/learning.png.

A member-evaluation is one member answering four prompts. Cells are runs of their own under --runs and are resumed when
they are there, so an interrupted benchmark goes on. About half an hour on two cores, most of it for full rank.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from seedtune.cli.main import main as seedtune

HERE = Path(__file__).parent
SEEDS = (42, 1, 2)


@dataclass(frozen=True)
class Way:
    """One way to perturb; `steps` iterations of `members` members, the centre evaluated every `every`."""

    name: str
    recipe: str
    members: int
    steps: int
    every: int
    colour: str


WAYS = (
    Way("low rank", "recipes/conciseness-smollm2.yaml", 32, 6, 1, "tab:blue"),
    Way("full rank", "recipes/conciseness-smollm2-fullrank.yaml", 12, 15, 3, "tab:orange"),
)


def run(way: Way, seed: int, runs: Path) -> list[dict[str, float]]:
    """The evaluations of one cell."""
    folder = runs / f"{way.recipe.split('/')[-1].removesuffix('.yaml')}-{seed}"
    resume = ["--resume"] if (folder / "journal.jsonl").exists() else []
    code = seedtune(
        ["train", "--config", str(HERE.parent / way.recipe), "--output_dir", str(folder), "--seed", str(seed),
         "--population_size", str(way.members), "--max_steps", str(way.steps), "--eval_steps", str(way.every),
         "--stop_at", "eval/answered < 0", *resume]
    )  # fmt: skip
    if code:
        sys.exit(code)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/reward" in line]


def table(results: dict[str, list[list[dict[str, float]]]]) -> str:
    out = ["| | member-evaluations | mean miss, each seed | mean | correct of 8, each seed |", "|---|---|---|---|---|"]
    for way in WAYS:
        for cells in zip(*results[way.name], strict=True):
            misses = [-cell["eval/reward"] for cell in cells]
            right = [8 * cell["eval/correct"] for cell in cells]
            out.append(
                f"| {way.name} | {way.members * int(cells[0]['step'])} | {', '.join(f'{m:.0f}' for m in misses)} "
                f"| {statistics.mean(misses):.0f} | {', '.join(f'{r:.0f}' for r in right)} |"
            )
    return "\n".join(out)


def figure(results: dict[str, list[list[dict[str, float]]]], file: Path) -> None:
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, metric, label in (
        (left, lambda cell: -cell["eval/reward"], "mean miss, characters"),
        (right, lambda cell: 8 * cell["eval/correct"], "correct of 8"),
    ):
        for way in WAYS:
            for number, cells in enumerate(results[way.name]):
                x = [way.members * cell["step"] for cell in cells]
                y = [metric(cell) for cell in cells]
                axes.plot(x, y, ".-", color=way.colour, alpha=0.7, label=None if number else way.name)
        axes.set(xlabel="member-evaluations (4 prompts each)", ylabel=label, ylim=(0, None))
        axes.legend()
        axes.grid(alpha=0.3)
    plt.savefig(file, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs/learning", help="folder of the cells")
    runs = Path(parser.parse_args().runs)
    results = {way.name: [run(way, seed, runs) for seed in SEEDS] for way in WAYS}
    figure(results, HERE / "learning.png")
    text = (HERE / "learning.md").read_text() if (HERE / "learning.md").exists() else "# Learning\n\n<!-- table -->\n"
    head, mark, _ = text.partition("<!-- table -->")
    (HERE / "learning.md").write_text(
        f"{head}{mark}\n\n{table(results)}\n\n![Misses and right answers](learning.png)\n"
    )
