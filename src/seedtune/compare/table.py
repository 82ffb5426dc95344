"""What `seedtune compare` prints at its end: one table for the five claims, one for all gold metrics where there are
several, one for the cost of each method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..report.format import duration, number
from .statistics import Line, lines, sensitivity

COSTS = ("seeds", "completions", "tokens", "training", "peak memory")


def comparison_table(comparison: Mapping[str, Any]) -> RenderableType:
    """From `comparison.json`."""
    found = lines(comparison)
    title = f"At most {comparison['num_completions']} completions each: {comparison['task']}, {comparison['model']}"
    headings = columns(comparison)
    at_the_end = 5 if comparison["gold_metric"] else 4  # in two tables: a terminal is narrow
    trained = [x for x in found if x.method != "base"]
    tables = [_table(title, headings[:at_the_end])]
    for x in found:
        tables[0].add_row(x.label, *claims_row(x, comparison)[:at_the_end], style="dim" if x.method == "base" else "")
    if headings[at_the_end:]:
        tables.append(_table("\nWhere the target was reached, seed by seed", headings[at_the_end:]))
        for x in trained:
            tables[-1].add_row(x.label, *claims_row(x, comparison)[at_the_end:])
    if len(comparison["gold_metrics"]) > 1:
        tables.append(_table("\nGold metrics at the end, with 95 % intervals over prompts", comparison["gold_metrics"]))
        for x in found:
            tables[-1].add_row(x.label, *gold_row(x), style="dim" if x.method == "base" else "")
    tables.append(_table("\nCost per training", COSTS))
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
    gold_metric, target = comparison["gold_metric"], comparison["target"]
    found = ["reward", "sd of seeds", "KL from base", *([gold_metric] if gold_metric else []), "tokens per completion"]
    if target is not None:
        found += [f"completions to {number(target)}", "KL then", *([f"{gold_metric} then"] if gold_metric else [])]
    return found


def claims_row(x: Line, comparison: Mapping[str, Any]) -> list[str]:
    gold_metric, target = comparison["gold_metric"], comparison["target"]
    found = [number(v) for v in (x.reward, x.spread, x.kl, *([x.gold] if gold_metric else []), x.length)]
    if target is not None:
        found += [to_target(x), number(x.kl_at_target), *([number(x.gold_at_target)] if gold_metric else [])]
    return found


def gold_row(x: Line) -> list[str]:
    """Each gold metric, with its interval."""
    return [number(mean) + ("" if half is None else f" ± {number(half)}") for mean, half in x.gold_metrics]


def to_target(x: Line) -> str:
    """`256, –`: per seed, a dash where it was not reached."""
    return ", ".join("–" if n is None else str(n) for n in x.to_target) or "–"


def costs(x: Line) -> list[str]:
    seeds = str(x.num_done) if x.num_done == x.num_planned else f"{x.num_done} of {x.num_planned}"
    memory = "–" if x.megabytes is None else f"{x.megabytes / 1000:.1f} GB"
    tokens = "–" if x.tokens is None else f"{x.tokens:,.0f}"
    return [seeds, "–" if x.num_completions is None else str(x.num_completions), tokens, duration(x.seconds), memory]


def notes(comparison: Mapping[str, Any], found: Sequence[Line]) -> list[str]:
    """What the tables do not show: sensitivity, cells that failed or are missing."""
    said = [
        f"Sensitivity: over its settings, {method} ended between {number(low)} and {number(high)}."
        for method, (low, high) in sensitivity(found).items()
    ]
    said += [f"{cell['folder']} failed: {cell['error']}" for cell in comparison["cells"] if cell.get("error")]
    missing = set(comparison.get("planned", [])) - {cell["folder"] for cell in comparison["cells"]}
    return said + [f"{name} has not been run." for name in sorted(missing)]
