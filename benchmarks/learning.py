"""Learning, over (model, task, settings, seed): the studies of benchmarks/studies.yaml, cell by cell.

    python benchmarks/learning.py [STUDY ...] [--runs FOLDER] [--models FOLDER]

A cell is one run, in a folder under --runs; one that was interrupted is resumed, one that is in
benchmarks/results/learning.json is not run again. The tables of benchmarks/learning.md are made from that file.
Evaluations are of the center, greedy, on held-out prompts. Intervals are Student's at 95 % over seeds, of differences
between an arm and the study's first arm with the same seed; arms of a study that is `apart` are different tasks, and
each has its own base. --models: the folder of models that are not shipped.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from seedtune.cli.main import main as seedtune
from seedtune.evaluation import statistics
from seedtune.report import history

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "learning.json", HERE / "learning.md"
MARK = "<!-- tables -->"

Cell = Mapping[str, Any]


def processor() -> str:
    """The model of the processor, as the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{names[0] if names else platform.machine()}{', AMX' if 'amx_bf16' in flags else ''}, {len(names)} threads"


def run(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train one cell, or finish it; what its evaluations found."""
    resume = ["--resume"] if (folder / "journal.jsonl").exists() else []
    flags = [part for key, value in settings.items() for part in (f"--{key}", *map(str, _values(value)))]
    began = time.monotonic()
    if code := seedtune(["train", *flags, "--output_dir", str(folder), *resume]):
        sys.exit(code)
    found = history.read(folder)
    evaluations = [
        {
            "completions": found.num_completions(line["step"]),
            **{key.removeprefix("eval/"): value for key, value in line.items()
               if key in ("step", "es/best_step", "es/noise_cost")
               or (key.startswith("eval/") and key.count("/") == 1 and not isinstance(value, str))},
        }
        for line in found.evaluations
    ]  # fmt: skip
    kept = ("step", "reward", "learning_rate", "es/sigma", "es/reliability", "es/reliability_error", "es/step_kl",
            "es/step_kl_measured")  # fmt: skip
    steps = [{key: line[key] for key in kept if key in line} for line in found.iterations]
    shutil.rmtree(folder / "checkpoint-best", ignore_errors=True)
    for checkpoint in found.checkpoints:
        shutil.rmtree(folder / checkpoint, ignore_errors=True)
    return {"evaluations": evaluations, "iterations": steps, "seconds": time.monotonic() - began}


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def handed_back(cell: Cell) -> dict[str, Any]:
    """The evaluation of the center that the run handed back: its best, or its last."""
    last = cell["evaluations"][-1]
    best = last.get("es/best_step", last["step"])
    return next(e for e in cell["evaluations"] if e["step"] == best)


def table(study: Mapping[str, Any], cells: Mapping[str, Mapping[str, Cell]]) -> str:
    """Rows of arms; `cells` by arm and seed."""
    transform, name = _scale(study)
    gold = study.get("gold", [])
    last = "base" if study.get("apart") else f"{name}, arm - first"
    head = ["arm", "seeds", "completions", "reward, last", "handed back", "KL, last", *gold, last]
    rows = [head, ["---"] * len(head)]
    first = cells.get(next(iter(study["arms"])), {})
    for arm in study["arms"]:
        of = cells.get(arm, {})
        if not of:
            rows.append([arm, "not run", *[""] * (len(head) - 2)])
            continue
        lasts = [cell["evaluations"][-1] for cell in of.values()]
        results = [handed_back(cell) for cell in of.values()]
        bases = sorted({cell["evaluations"][0]["reward"] for cell in of.values()})
        both = [seed for seed in of if seed in first and of is not first]
        changes = [transform(handed_back(of[s])["reward"]) - transform(handed_back(first[s])["reward"]) for s in both]
        rows.append(
            [
                arm,
                ", ".join(of),
                str(max(e["completions"] for e in lasts)),
                _list(e["reward"] for e in lasts),
                _list(e["reward"] for e in results),
                _list(e.get("kl", math.nan) for e in lasts),
                *(_list(e.get(metric, math.nan) for e in results) for metric in gold),
                _list(bases) if study.get("apart") else _interval(changes) if changes else "–",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _scale(study: Mapping[str, Any]) -> tuple[Any, str]:
    if study.get("scale") == "log-miss":
        return lambda reward: -math.log(max(-reward, 1e-3)), "minus log-miss"
    return lambda reward: reward, "reward"


def _list(values: Any) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _interval(values: list[float]) -> str:
    found = statistics.mean(values)
    return f"{found.mean:+.2f}" + ("" if math.isnan(found.half) else f" ± {found.half:.2f}")


def write(studies: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    parts = []
    for name, study in studies.items():
        cells = results.get(name, {})
        machines = {cell["machine"] for of in cells.values() for cell in of.values()}
        base = next((c["evaluations"][0] for of in cells.values() for c in of.values()), None)
        before = f" Base: {base['reward']:.3g}." if base and not study.get("apart") else ""
        note = f"\n\n{study['found'].strip()}" if study.get("found") else ""
        parts.append(
            f"## {name}\n\n{study['question'].strip()}{before} {', '.join(sorted(machines))}\n\n"
            f"{table(study, cells)}{note}"
        )
    head = PAGE.read_text().partition(MARK)[0] if PAGE.exists() else "# Learning\n\n"
    PAGE.write_text(head + MARK + "\n\n" + "\n\n".join(parts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="default: all")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="folder of the cells")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of models that are not shipped")
    parser.add_argument("--table", action="store_true", help="run nothing; write the tables again")
    parsed = parser.parse_args()
    studies = yaml.safe_load((HERE / "studies.yaml").read_text())
    shared = studies.pop("shared")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in [] if parsed.table else parsed.studies or studies:
        study = studies[name]
        for seed in study["seeds"]:
            for arm, own in study["arms"].items():
                cells = results.setdefault(name, {}).setdefault(arm, {})
                if str(seed) in cells:
                    continue
                settings = {**shared[study["task"]], **study.get("settings", {}), **(own or {}), "seed": seed}
                if str(settings.get("model_name_or_path", "")).endswith(".gguf"):
                    settings["model_name_or_path"] = str(parsed.models / settings["model_name_or_path"])
                plain = "".join(c if c.isalnum() else "-" for c in f"{name}-{arm}")
                cells[str(seed)] = {**run(parsed.runs / f"{plain}-{seed}", settings), "machine": processor()}
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                write(studies, results)
    write(studies, results)


if __name__ == "__main__":
    main()
