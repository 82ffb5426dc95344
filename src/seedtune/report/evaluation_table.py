"""What `seedtune eval` prints: completions and metrics, of a model and of its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .format import completion_text, number, prompt_text

Rows = Sequence[Mapping[str, Any]]


class Estimate(Protocol):
    """A mean and half of its 95 % interval."""

    @property
    def mean(self) -> float: ...
    @property
    def half(self) -> float: ...


def evaluation_table(
    rows: Mapping[str, Rows], estimates: Mapping[str, Mapping[str, Estimate]], limit: int = 12
) -> RenderableType:
    """Two tables, with a column for each of `base` (where it is known) and `model`. Rows are greedy completions."""
    completions = Table(
        title="Greedy completions", title_justify="left", title_style="bold", expand=True, show_lines=True
    )
    completions.add_column("prompt", ratio=3)
    for who in rows:
        completions.add_column(who, ratio=4, style="dim" if who == "base" else "")
        completions.add_column("reward", justify="right", no_wrap=True)
    for of_prompt in list(zip(*rows.values(), strict=True))[:limit]:
        cells: list[Text | str] = [Text(prompt_text(of_prompt[0]["prompt"], 90))]
        for row in of_prompt:
            cells += [Text(completion_text(row, 200 // len(rows))), number(row["reward"])]
        completions.add_row(*cells)
    count = len(rows["model"])
    more = [Text(f"... and {count - limit} more")] if count > limit else []
    metrics = Table(title="\nMeans with 95 % intervals", title_justify="left", title_style="bold", box=None)
    metrics.add_column("")
    for who in estimates:
        metrics.add_column(who, justify="right", style="dim" if who == "base" else "bold")
    for name in estimates["model"]:
        metrics.add_row(name, *(_with_interval(of.get(name)) for of in estimates.values()))
    return Group(completions, *more, metrics)


def _with_interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return number(estimate.mean) + (f" ± {number(estimate.half)}" if estimate.half == estimate.half else "")
