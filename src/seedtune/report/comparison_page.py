"""The page of a comparison: the claims, the curves, the cost, the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RunFolderError
from . import figures, html
from .answers import item
from .claims import Line, lines
from .compared import COSTS, claims_row, columns, costs, notes
from .words import number

NAME = "comparison.json"


def write(folder: Path, out: Path | None = None, refresh: int = 0) -> Path:
    """`report/index.html` and PNGs; returns the page. Raises RunFolderError, SaveError."""
    try:
        comparison = json.loads((folder / NAME).read_text(encoding="utf-8"))
        shown, drawn = context(comparison, folder), drawings(comparison)
    except (ValueError, KeyError, TypeError) as e:
        raise RunFolderError(
            f"{folder / NAME} is damaged ({e}): run seedtune compare again, it repeats nothing."
        ) from e
    return html.write(out or folder / "report", "comparison.html", shown, drawn, refresh)


def goes_on(folder: Path) -> bool:
    """Whether cells are missing, and not for having failed."""
    try:
        comparison = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return set(comparison["planned"]) > {cell["folder"] for cell in comparison["cells"]} - {"base-seed0"}
    except (ValueError, KeyError, TypeError):
        return False


def drawings(comparison: Mapping[str, Any]) -> dict[str, figures.Spec]:
    """The figures that there is data for."""
    cells = [cell for cell in comparison["cells"] if cell.get("result") and cell["method"] != "base"]
    start, truth = _start(comparison), comparison["truth"]
    points = [
        {"label": cell["label"], "seed": cell["seed"], **_point(point, truth)}
        for cell in cells
        for point in [*start, *cell["result"]["points"]]
    ]
    if not points:
        return {}
    rewards = [{**p, "value": p["reward"]} for p in points]
    found = {"curves": figures.curves(rewards), "clock": figures.curves(rewards, x="seconds")}
    base = [{"label": "base", "seed": 0, **_point(point, truth)} for point in start]
    near = [p for p in [*(p for p in points if p["generations"]), *base] if p["kl"] is not None]
    if len(near) > 1:
        found["plane"] = figures.plane(near, by="label")
    told = [{**p, "value": p["truth"]} for p in points if p["truth"] is not None]
    if told:
        found["truth"] = figures.curves(told, title=str(truth))
    return found


def _start(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The base model's evaluation, where every training begins."""
    base = [cell for cell in comparison["cells"] if cell["method"] == "base" and cell.get("result")]
    return list(base[0]["result"]["points"]) if base else []


def _point(point: Mapping[str, Any], truth: str | None) -> dict[str, Any]:
    metrics = {name: metric["mean"] for name, metric in point["metrics"].items()}
    return {
        "generations": point["generations"],
        "seconds": point["seconds"],
        "reward": metrics["reward"],
        "kl": metrics.get("kl"),
        "truth": metrics.get(truth),
    }


def context(comparison: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the template shows."""
    found = lines(comparison)
    done = sum(1 for cell in comparison["cells"] if cell.get("result") and cell["method"] != "base")
    planned = len(comparison.get("planned", []))
    start = _start(comparison)
    prompts = len(start[0]["completions"]) if start else 0
    methods = list(dict.fromkeys(x.method for x in found if x.method != "base"))
    return {
        "title": f"{' and '.join(methods) or 'Nothing yet'}: {comparison['task']}, {comparison['model']}",
        "state": f"{done} of {planned} trainings",
        "lead": _lead(comparison, found),
        "warnings": _warnings(comparison),
        "columns": columns(comparison),
        "rows": [{"label": x.label, "cells": claims_row(x, comparison)} for x in found],
        "evaluated_on": f"{prompts} prompts" if prompts else "the evaluation prompts",
        "samples": comparison["samples"],
        "notes": notes(comparison, found),
        "cost_columns": COSTS,
        "costs": [{"label": x.label, "cells": costs(x)} for x in found if x.method != "base"],
        "items": _items(comparison),
        "kinds": [("better", "a reward went up"), ("worse", "a reward went down")]
        + [(f"{way}-{comparison['truth']}", f"some {way} {comparison['truth']}") for way in ("won", "lost")
           if comparison["truth"]],
        "commands": [f"seedtune compare --config {folder / 'compare.yaml'}", f"seedtune report {folder}"],
        "environment": json.dumps(comparison.get("environment", {}), indent=2),
        "settings": json.dumps(
            {**comparison["settings"], **{c["label"]: c["settings"] for c in comparison["cells"] if c["settings"]}},
            indent=2, default=str,
        ),
    }  # fmt: skip


def _lead(comparison: Mapping[str, Any], found: Sequence[Line]) -> list[str]:
    ends = sorted(
        (x for x in found if x.reward is not None and x.method != "base"), key=lambda x: -float(x.reward or 0)
    )
    if not ends:
        return ["No training is done yet."]
    said = "; ".join(f"{x.label} {number(x.reward)}" for x in ends)
    base = next((x for x in found if x.method == "base"), None)
    began = f" The base model earns {number(base.reward)}." if base else ""
    many = [
        f"Each training generated at most {comparison['generations']} answers. Mean reward at the end: {said}.{began}"
    ]
    quick = [x for x in ends if x.seconds]
    if len(quick) > 1:
        fast, slow = min(quick, key=lambda x: x.seconds or 0), max(quick, key=lambda x: x.seconds or 0)
        times = (slow.seconds or 0) / (fast.seconds or 1)
        many.append(f"For that, {fast.label} took the least time, and {slow.label} {number(times)} times as long.")
    return many


def _warnings(comparison: Mapping[str, Any]) -> list[str]:
    """Trainings in which the reward rose while the truth fell, by more than chance."""
    return [f"{cell['folder']}: {finding}." for cell in comparison["cells"] for finding in cell.get("hacked", [])]


def _items(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The base model's answers beside those of each method's first seed."""
    start, truths = _start(comparison), [t for t in [comparison["truth"]] if t]
    if not start:
        return []
    said = {"base": start[0]["completions"]}
    for cell in comparison["cells"]:
        if cell.get("result") and cell["label"] not in said:
            said[cell["label"]] = cell["result"]["points"][-1]["completions"]
    together = zip(*said.values(), strict=False)
    return [item(rows[0]["prompt"], list(zip(said, rows, strict=True)), truths) for rows in together]
