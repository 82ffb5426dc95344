"""What `seedtune compare` shows at its end: one table for the five claims, one for what each cell cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .claims import Line, lines, sensitivity
from .words import duration, number

COSTS = ("seeds", "generations", "tokens", "training", "peak memory")


def compared(comparison: Mapping[str, Any]) -> RenderableType:
    """From `comparison.json`."""
    found = lines(comparison)
    title = f"At most {comparison['generations']} generations each: {comparison['task']}, {comparison['model']}"
    headings, at_the_end = columns(comparison), 5 if comparison["truth"] else 4  # in two tables: a terminal is narrow
    trained = [x for x in found if x.method != "base"]
    tables = [_table(title, headings[:at_the_end])]
    for x in found:
        tables[0].add_row(x.label, *claims_row(x, comparison)[:at_the_end], style="dim" if x.method == "base" else "")
    if headings[at_the_end:]:
        tables.append(_table("\nWhere the target was reached, seed by seed", headings[at_the_end:]))
        for x in trained:
            tables[-1].add_row(x.label, *claims_row(x, comparison)[at_the_end:])
    tables.append(_table("\nWhat a training cost", COSTS))
    for x in trained:
        tables[-1].add_row(x.label, *costs(x))
    return Group(*tables, "", *(Text(said) for said in notes(comparison, found)))


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def columns(comparison: Mapping[str, Any]) -> list[str]:
    """Headings of `claims_row`."""
    truth, target = comparison["truth"], comparison["target"]
    found = ["reward", "sd of seeds", "KL from base", *([truth] if truth else []), "tokens an answer"]
    if target is not None:
        found += [f"generations to {number(target)}", "KL there", *([f"{truth} there"] if truth else [])]
    return found


def claims_row(x: Line, comparison: Mapping[str, Any]) -> list[str]:
    truth, target = comparison["truth"], comparison["target"]
    found = [number(v) for v in (x.reward, x.spread, x.kl, *([x.truth] if truth else []), x.length)]
    if target is not None:
        found += [to_target(x), number(x.kl_there), *([number(x.truth_there)] if truth else [])]
    return found


def to_target(x: Line) -> str:
    """`256, –`: by seed, a dash where it was not reached."""
    return ", ".join("–" if g is None else str(g) for g in x.to_target) or "–"


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
