"""The page of a run: what it learned, what it cost, how far it moved."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import figures, html
from .answers import item
from .history import History, read
from .words import duration, number

_LABELS = {
    "completions/mean_length": "tokens an answer",
    "kl": "KL from the base, nats a token",
    "distance": "distance of the weights",
    "perplexity": "perplexity of a held-out text",
}


def write(run: Path, out: Path | None = None, refresh: int = 0) -> Path:
    """`report/index.html` and PNGs in the run's folder (or in `out`); returns the page.

    Raises RunFolderError, JournalError, SaveError.
    """
    history = read(run)
    return html.write(out or run / "report", "run.html", context(history), drawings(history), refresh)


def drawings(h: History) -> dict[str, figures.Spec]:
    """The figures that there is data for."""
    found = {}
    centre = [{**_at(h, e), "reward": e["eval/reward"]} for e in h.evaluations]
    if h.journal:
        found["training"] = figures.training(h.members, centre)
    points = [
        {**p, "kl": e["eval/kl"], "label": f"iteration {p['step']}", "what": "centre"}
        for p, e in zip(centre, h.evaluations, strict=True)
        if isinstance(e.get("eval/kl"), float)
    ]
    if len(points) > 1:
        found["plane"] = figures.plane(points, by="what")
    if values := _before_and_after(h):
        found["histogram"] = figures.histogram(values, "reward")
    parts = [
        {"step": line["step"], "part": key.removeprefix("time/"), "seconds": line[key]}
        for line in [*h.iterations, *h.evaluations]
        for key in line
        if key.startswith("time/")
    ]
    if parts:
        found["timings"] = figures.timings(parts)
    fleet = [
        {"step": line["step"], **{name: line[f"fleet/{name}"] for name in ("utilisation", "replicas", "lost")}}
        for line in h.iterations
        if "fleet/utilisation" in line
    ]
    if fleet:
        found["fleet"] = figures.fleet(fleet)
    return found


def _at(h: History, line: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": line["step"], "generations": h.generations(line["step"])}


def _before_and_after(h: History) -> list[dict[str, Any]]:
    """Of the centre's answers where there are some before and after, else of the members."""
    if h.before and h.after:
        first, last = h.evaluations[0]["step"], h.evaluations[-1]["step"]
        rows = {f"centre after iteration {first}": h.before, f"centre after iteration {last}": h.after}
        return [{"reward": row["reward"], "when": when} for when, some in rows.items() for row in some]
    if len(h.journal) < 2:
        return []
    ends = (h.journal[0], h.journal[-1])
    return [{"reward": r, "when": f"members of iteration {it.t}"} for it in ends for r in it.rewards_M]


def context(h: History) -> dict[str, Any]:
    """What the template shows. Numbers are text already."""
    done, planned = len(h.journal), _planned(h)
    after = bool(h.before and h.after)
    return {
        "title": f"{h.model}, {' + '.join(_rewards(h)) or 'fine-tuned'}",
        "state": f"running: iteration {done} of {planned}" if h.running else f"{done} iterations",
        "running": h.running,
        "lead": _lead(h),
        "warnings": _warnings(h),
        "tiles": _tiles(h),
        "evaluated_on": f"{len(h.before)} prompts" if h.before else "the evaluation prompts",
        "histogram_of": "Of the centre's greedy answers." if after else "Of members, on their training prompts.",
        "items": [
            item(old["prompt"], [("before", old), ("after", new)], h.truths)
            for old, new in zip(h.before, h.after, strict=False)
        ],
        "kinds": _kinds(h.truths),
        "columns": _columns(h),
        "evaluations": [
            {"step": e["step"], "cells": [_cell(e, name) for name in _names(h)]} for e in h.evaluations
        ],
        "commands": _commands(h),
        "facts": _facts(h),
        "settings": h.settings or json.dumps(h.config, indent=2),
        "environment": json.dumps(h.environment or h.header.get("software", {}), indent=2),
    }  # fmt: skip


def _rewards(h: History) -> list[str]:
    return list(dict.fromkeys(key.split("/")[1] for line in h.iterations for key in line if key.startswith("rewards/")))


def _planned(h: History) -> Any:
    found = [line.partition(":")[2].strip() for line in h.settings.splitlines() if line.startswith("max_steps:")]
    return found[0] if found else "?"


def _lead(h: History) -> list[str]:
    """Plain sentences for someone who has not read the paper."""
    if not h.journal:
        return ["No iteration is done yet."]
    seconds = sum(v for line in [*h.iterations, *h.evaluations] for k, v in line.items() if k.startswith("time/"))
    cost = (
        f"{len(h.journal)} iterations of {len(h.journal[0].rewards_M)} members, {h.generations(len(h.journal))} answers"
    )
    said = [f"Learned by trying noise on the weights, with forward passes only: {cost}, {duration(seconds)}."]
    if len(h.evaluations) < 2:
        return said
    first, last = h.evaluations[0], h.evaluations[-1]
    text = f"On {len(h.after) or 'the evaluation'} prompts the mean reward went from {number(first['eval/reward'])} to "
    text += f"{number(last['eval/reward'])}"
    for name in h.truths[:1]:
        text += f", and {name}, which is measured and never optimised, from {_cell(first, name)} to {_cell(last, name)}"
    said.append(text + ".")
    if isinstance(kl := last.get("eval/kl"), float):
        said.append(
            f"It moved {number(kl)} nats a token from the base model: what it writes now, the base model finds "
            f"{number(math.exp(min(kl, 50)))} times less likely, token by token, on the (geometric) mean. 0 would be "
            "no change."
        )
    return said


def _warnings(h: History) -> list[str]:
    found = list(h.notes)
    if h.evaluations and h.evaluations[-1].get("eval/hacked"):
        first, last = h.evaluations[0], h.evaluations[-1]
        fell = [n for n in h.truths if last.get(f"eval/{n}", 0) < first.get(f"eval/{n}", 0)]
        changes = "; ".join(f"{n} from {_cell(first, n)} to {_cell(last, n)}" for n in fell)
        found.append(f"The reward rose while what is meant fell ({changes}): it may be hacked. Read the answers.")
    return [note[:1].upper() + note[1:].rstrip(".") + "." for note in found]


def _tiles(h: History) -> list[dict[str, str]]:
    if not h.evaluations:
        return [{"value": number(m["mean"]), "label": f"members' reward, iteration {m['step']}"}
                for m in h.members[:1] + h.members[1:][-1:]]  # fmt: skip
    first, last = h.evaluations[0], h.evaluations[-1]
    tiles = []
    for name in _names(h):
        if name != "reward_std":
            old, new = _cell(first, name), _cell(last, name)
            tiles.append({"value": new if old == new else f"{old} → {new}", "label": _LABELS.get(name, name)})
    return tiles


def _names(h: History) -> list[str]:
    known = ["reward", *h.truths, "completions/mean_length", "kl", "distance", "perplexity"]
    return [n for n in known if any(f"eval/{n}" in e for e in h.evaluations)]


def _columns(h: History) -> list[str]:
    return [_LABELS.get(name, name) for name in _names(h)]


def _cell(line: Mapping[str, Any], name: str) -> str:
    value = line.get(f"eval/{name}")
    text = number(value) if isinstance(value, int | float) else "–"
    if name == "kl" and line.get("eval/kl_ci95"):
        text += f" ± {number(line['eval/kl_ci95'])}"
    return text


def _kinds(truths: Sequence[str]) -> list[tuple[str, str]]:
    kinds = [("better", "reward went up"), ("worse", "reward went down"), ("same", "reward unchanged")]
    return kinds + [(f"{way}-{name}", f"{way} {name}") for name in truths for way in ("won", "lost")]


def _commands(h: History) -> list[str]:
    run, config = h.folder, h.folder / "config.resolved.yaml"
    commands = (
        [f"seedtune train --config {config} --output_dir {run}-again"] if "model_name_or_path" in h.settings else []
    )
    commands.append(f"seedtune replay {run} --out {run}-weights")
    return [*commands, f"seedtune export {run} --patch {run.name}.seedtune", f"seedtune eval {run}"]


def _facts(h: History) -> list[tuple[str, str]]:
    base = h.header["base"]
    return [
        ("base model", f"{base['model']}, digest {base['digest']}"),
        ("weights that move", f"{base['moved']:,} of {base['parameters']:,}"),
        ("weights after the last iteration, digest", h.journal[-1].digest if h.journal else "–"),
        ("seed", str(h.config["seed"])),
        ("sigma, learning rate", f"{number(h.config['sigma'])}, {number(h.config['learning_rate'])}"),
        ("checkpoints", ", ".join(h.checkpoints) or "none; seedtune replay rebuilds the weights from the journal"),
    ]
