"""The page of a comparison: the claims, the curves, the cost, the completions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RunFolderError
from ..report import figures, html
from ..report.completions import item
from ..report.format import number
from ..utils.paths import AnyPath, local_path
from .results import read, refusing_damage
from .statistics import Line, lines
from .table import COSTS, claims_row, columns, costs, gold_row, notes


def write(folder: AnyPath, out: AnyPath | None = None, refresh: int = 0) -> Path:
    """`report/index.html` and PNGs; returns the page. Raises RunFolderError, SaveError."""
    folder = local_path(folder)
    comparison = read(folder)
    with refusing_damage(folder):
        shown, drawn = context(comparison, folder), drawings(comparison)
    return html.write(local_path(out) if out else folder / "report", "comparison.html", shown, drawn, refresh)


def goes_on(folder: Path) -> bool:
    """Whether cells are still to be run."""
    try:
        comparison = read(folder)
        return set(comparison["planned"]) > {cell["folder"] for cell in comparison["cells"]} - {"base-seed0"}
    except (RunFolderError, KeyError):
        return False


def drawings(comparison: Mapping[str, Any]) -> dict[str, figures.Spec]:
    """The figures that there is data for."""
    cells = [cell for cell in comparison["cells"] if cell.get("result") and cell["method"] != "base"]
    start, gold_metric = _start(comparison), comparison["gold_metric"]
    points = [
        {"label": cell["label"], "seed": cell["seed"], **_point(point, gold_metric)}
        for cell in cells
        for point in [*start, *cell["result"]["points"]]
    ]
    if not points:
        return {}
    rewards = [{**p, "value": p["reward"]} for p in points]
    found = {"curves": figures.curves(rewards), "clock": figures.curves(rewards, x="seconds")}
    base = [{"label": "base", "seed": 0, **_point(point, gold_metric)} for point in start]
    near = [p for p in [*(p for p in points if p["completions"]), *base] if p["kl"] is not None]
    if len(near) > 1:
        found["plane"] = figures.plane(near, by="label")
    if gold := [{**p, "value": p["gold"]} for p in points if p["gold"] is not None]:
        found["gold_metric"] = figures.curves(gold, title=str(gold_metric))
    return found


def _start(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The base model's evaluation, where every training begins."""
    base = [cell for cell in comparison["cells"] if cell["method"] == "base" and cell.get("result")]
    return list(base[0]["result"]["points"]) if base else []


def _point(point: Mapping[str, Any], gold_metric: str | None) -> dict[str, Any]:
    metrics = {name: metric["mean"] for name, metric in point["metrics"].items()}
    return {
        "completions": point["num_completions"],
        "seconds": point["seconds"],
        "reward": metrics["reward"],
        "kl": metrics.get("kl"),
        "gold": metrics.get(gold_metric),
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
        "gold_columns": comparison["gold_metrics"],
        "gold_rows": [{"label": x.label, "cells": gold_row(x)} for x in found],
        "evaluated_on": f"{prompts} prompts" if prompts else "the evaluation prompts",
        "samples": comparison["samples"],
        "notes": notes(comparison, found),
        "cost_columns": COSTS,
        "costs": [{"label": x.label, "cells": costs(x)} for x in found if x.method != "base"],
        "items": _items(comparison),
        "kinds": [("better", "a reward went up"), ("worse", "a reward went down")]
        + [(f"{way}-{name}", f"some {way} {name}") for name in comparison["gold_metrics"] for way in ("won", "lost")],
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
        f"Each training generated at most {comparison['num_completions']} completions. Mean reward at the end: "
        f"{said}.{began}"
    ]
    quick = [x for x in ends if x.seconds]
    if len(quick) > 1:
        fast, slow = min(quick, key=lambda x: x.seconds or 0), max(quick, key=lambda x: x.seconds or 0)
        times = (slow.seconds or 0) / (fast.seconds or 1)
        many.append(f"{fast.label} took the least time, {slow.label} {number(times)} times as long.")
    return many


def _warnings(comparison: Mapping[str, Any]) -> list[str]:
    """Trainings in which the reward rose while the gold metric fell, by more than chance."""
    return [f"{cell['folder']}: {finding}." for cell in comparison["cells"] for finding in cell.get("hacked", [])]


def _items(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The base model's completions beside those of each method's first seed."""
    start, gold_metrics = _start(comparison), comparison["gold_metrics"]
    if not start:
        return []
    said = {"base": start[0]["completions"]}
    for cell in comparison["cells"]:
        if cell.get("result") and cell["label"] not in said:
            said[cell["label"]] = cell["result"]["points"][-1]["completions"]
    together = zip(*said.values(), strict=False)
    return [item(rows[0]["prompt"], list(zip(said, rows, strict=True)), gold_metrics) for rows in together]
