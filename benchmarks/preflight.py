"""`seedtune preflight` against what is learned later: the tasks of the study `preflight` (benchmarks/studies.yaml).

    python benchmarks/learning.py preflight   # first: train on each
    python benchmarks/preflight.py            # then: the table

Predicted: the share of what is left to gain that a step closes. Learned: the share of it that the run closed, on
held-out prompts, by the center that it handed back; what is left reaches from the base to the `TOP` of a reward.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from learning import RESULTS, handed_back
from seedtune import ESTrainer
from seedtune.training.preflight import Preflight
from seedtune.training.recipe import data_and_rewards, resolve

STUDIES = Path(__file__).with_name("studies.yaml")
#: The most that a reward can be; 1 where nothing else is said.
TOP = {"conciseness": 0.0}


def measure(settings: dict[str, Any]) -> Preflight:
    args = resolve({}, settings)
    return ESTrainer(model=args.model_name_or_path, args=args, **data_and_rewards(args)).preflight()


def main() -> None:
    studies = yaml.safe_load(STUDIES.read_text())
    study = studies["preflight"]
    cells = json.loads(RESULTS.read_text()).get("preflight", {})
    print("| task | verdict | seconds | reliability (90 %) | a step closes | the run closed | KL |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for arm, own in study["arms"].items():
        settings = {**studies["shared"][study["task"]], **study["settings"], **own, "output_dir": "runs/preflight"}
        if isinstance(settings.get("task_args"), str):
            settings["task_args"] = yaml.safe_load(settings["task_args"])
        found = measure(settings)
        learned, kl = [], []
        for cell in cells.get(arm, {}).values():
            before, after = cell["evaluations"][0]["reward"], handed_back(cell)
            learned.append((after["reward"] - before) / (TOP.get(arm, 1.0) - before))
            kl.append(cell["evaluations"][-1]["kl"])
        (low, high), (least, most) = found.interval, found.gain_interval
        cell = [
            arm,
            found.verdict,
            f"{found.seconds:.0f}",
            f"{found.reliability:.2g} ({low:.2g} to {high:.2g})",
            f"{found.gain:.1%} ({least:.1%} to {most:.1%})",
            ", ".join(f"{share:.1%}" for share in learned),
            ", ".join(f"{nats:.2g}" for nats in kl),
        ]
        print(f"| {' | '.join(cell)} |", flush=True)


if __name__ == "__main__":
    main()
