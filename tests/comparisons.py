"""Results of a comparison, made from numbers."""

from __future__ import annotations


def cell(label, seed, *points, error="", megabytes=100.0):
    rows = [
        {"num_completions": g, "tokens": 10 * g, "seconds": g / 2, "model": None, "completions": [],
         "metrics": {k: {"mean": v, "ci95": None} for k, v in zip(("reward", "kl", "right"), values, strict=True)}}
        for g, *values in points
    ]  # fmt: skip
    result = {"points": rows, "peak_megabytes": megabytes} if rows else None
    return {"label": label, "method": label.split()[0], "settings": {}, "seed": seed, "folder": f"{label}-seed{seed}",
            "result": result, "error": error}  # fmt: skip


def compared(*cells, target=-30.0, planned=()):
    return {"cells": list(cells), "planned": list(planned) or [c["folder"] for c in cells], "target": target,
            "gold_metric": "right", "gold_metrics": ["right"],
            "num_completions": 200, "samples": 4, "task": "t", "model": "m",
            "settings": {}}  # fmt: skip
