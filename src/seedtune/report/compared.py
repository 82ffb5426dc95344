"""What `seedtune compare` shows at its end: one table for the five claims, one for what each cell cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .claims import Line, lines, sensitivity
from .words import duration, number


def compared(comparison: Mapping[str, Any]) -> RenderableType:
    """From `comparison.json`."""
    found = lines(comparison)
    truth = comparison["truth"]
    title = f"At most {comparison['generations']} generations each: {comparison['task']}, {comparison['model']}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column("")
    headings = ["reward", "sd of seeds", "KL from base", *([truth] if truth else []), "tokens an answer"]
    headings += [f"generations to {number(comparison['target'])}"] if comparison["target"] is not None else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for x in found:
        values = [x.reward, x.spread, x.kl, *([x.truth] if truth else []), x.length]
        cells = [number(v) for v in values] + ([to_target(x)] if comparison["target"] is not None else [])
        table.add_row(x.label, *cells, style="dim" if x.method == "base" else "")
    cost = Table(title="\nWhat a cell cost", title_justify="left", title_style="bold", box=None)
    cost.add_column("")
    for heading in ("seeds", "generations", "tokens", "training", "peak memory"):
        cost.add_column(heading, justify="right")
    for x in found:
        if x.method != "base":
            cost.add_row(x.label, *costs(x))
    return Group(table, cost, *(Text(said) for said in notes(comparison, found)))


def to_target(x: Line) -> str:
    """`256, –`: by seed, a dash where it was not reached."""
    return ", ".join("–" if g is None else str(g) for g in x.to_target)


def costs(x: Line) -> list[str]:
    seeds = str(x.there) if x.there == x.planned else f"{x.there} of {x.planned}"
    memory = "–" if x.megabytes is None else f"{x.megabytes / 1000:.1f} GB"
    tokens = "–" if x.tokens is None else f"{x.tokens:,.0f}"
    return [seeds, "–" if x.generations is None else str(x.generations), tokens, duration(x.seconds), memory]


def notes(comparison: Mapping[str, Any], found: Sequence[Line]) -> list[str]:
    """What the tables leave to say: sensitivity, cells that failed or are missing."""
    said = [
        f"Sensitivity: over its settings, {method} ended between {number(low)} and {number(high)}."
        for method, (low, high) in sensitivity(found).items()
    ]
    said += [f"{cell['folder']} failed: {cell['error']}" for cell in comparison["cells"] if cell.get("error")]
    missing = set(comparison.get("planned", [])) - {cell["folder"] for cell in comparison["cells"]}
    return said + [f"{name} has not been run." for name in sorted(missing)]
