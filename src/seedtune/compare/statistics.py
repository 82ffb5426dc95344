"""From cells to the five claims: final reward, completions to a target, spread over seeds, sensitivity, and KL with the
gold metric.

Numbers only, from `comparison.json`; what is missing stays missing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One method and setting over its seeds. None: not known (a cell is missing, one seed has no spread, no target).

    `reward`, `kl`, `gold` (the first gold metric) and `length` are means over seeds at the last evaluation, `spread`
    the standard deviation of `reward`; `gold_metrics` has each gold metric with half the width of its 95 % interval
    over prompts, both means over seeds (seeds share the prompts, so the interval does not shrink with their number).
    `to_target` has, per seed, the completions at the first evaluation with at least the
    target reward, and `kl_at_target` and `gold_at_target` the means at those evaluations. `num_done` of `num_planned`
    cells have a result.
    """

    label: str
    method: str
    num_planned: int
    num_done: int
    reward: float | None
    spread: float | None
    kl: float | None
    gold: float | None
    length: float | None
    to_target: tuple[int | None, ...]
    kl_at_target: float | None
    gold_at_target: float | None
    num_completions: int | None
    tokens: float | None
    seconds: float | None
    megabytes: float | None
    gold_metrics: tuple[tuple[float | None, float | None], ...] = ()


def lines(comparison: Mapping[str, Any]) -> list[Line]:
    """The base model's line, then a line for each method and setting, in their order."""
    cells, planned = comparison["cells"], comparison.get("planned", [])
    found = []
    for label in dict.fromkeys(cell["label"] for cell in cells):
        own = [cell for cell in cells if cell["label"] == label]
        seeds = [name for name in planned if name.rpartition("-seed")[0] == own[0]["folder"].rpartition("-seed")[0]]
        results = [cell["result"] for cell in own if cell.get("result")]
        found.append(
            _line(own[0], max(len(seeds), len(own)), results, comparison.get("target"), comparison["gold_metrics"])
        )
    return found


def _line(
    cell: Mapping[str, Any], planned: int, results: Sequence[Result], target: Any, gold_metrics: Sequence[str]
) -> Line:
    lasts, gold_metric = [r["points"][-1] for r in results], next(iter(gold_metrics), None)
    rewards = [_value(p, "reward") for p in lasts]
    firsts = [_reached(r["points"], target) for r in results] if target is not None and cell["method"] != "base" else []
    reached = [p for p in firsts if p is not None]
    return Line(
        cell["label"],
        cell["method"],
        planned,
        len(results),
        _mean(rewards),
        statistics.stdev([r for r in rewards if r is not None]) if len(rewards) > 1 else None,
        _mean([_value(p, "kl") for p in lasts]),
        _mean([_value(p, gold_metric) for p in lasts]),
        _mean([_value(p, "length") for p in lasts]),
        tuple(None if p is None else p["num_completions"] for p in firsts),
        _mean([_value(p, "kl") for p in reached]),
        _mean([_value(p, gold_metric) for p in reached]),
        max((p["num_completions"] for p in lasts), default=None),
        _mean([p["tokens"] for p in lasts]),
        _mean([p["seconds"] for p in lasts]),
        max((r["peak_megabytes"] for r in results if r["peak_megabytes"]), default=None),
        tuple((_mean([_value(p, name) for p in lasts]), _half(lasts, name)) for name in gold_metrics),
    )


def sensitivity(of: Sequence[Line]) -> dict[str, tuple[float, float]]:
    """Worst and best mean final reward over the settings of each method that was given several."""
    found = {}
    for method in dict.fromkeys(x.method for x in of):
        rewards = [x.reward for x in of if x.method == method and x.reward is not None]
        if len(rewards) > 1:
            found[method] = (min(rewards), max(rewards))
    return found


def _value(point: Mapping[str, Any], name: str | None) -> float | None:
    metric = point["metrics"].get(name)
    return None if metric is None or metric["mean"] is None else float(metric["mean"])


def _half(points: Sequence[Mapping[str, Any]], name: str) -> float | None:
    halves = [(point["metrics"].get(name) or {}).get("ci95") for point in points]
    return None if None in halves else _mean(halves)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _reached(points: Sequence[Mapping[str, Any]], target: float) -> Mapping[str, Any] | None:
    return next((p for p in points if (value := _value(p, "reward")) is not None and value >= target), None)
