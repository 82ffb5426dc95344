"""Figures as Vega-Lite specifications: the same one is drawn in the page and written as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

#: Readable on white and on near-black, and apart from each other for colour-blind eyes.
COLOURS = ["#0f9d8a", "#e07a3f", "#6d7fd6", "#c2508f", "#a08a2c", "#7a8793"]
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


def training(members: Rows, centre: Rows) -> Spec:
    """The reward over sample evaluations: a band for members (mean ± deviation), a line for the centre.

    `members`: generations, mean, std; `centre`: generations, reward, step.
    """
    x = {"field": "generations", "type": "quantitative", "title": "generations (members × prompts)"}
    band = [{**m, "low": m["mean"] - m["std"], "high": m["mean"] + m["std"]} for m in members]

    def y(field: str) -> Spec:
        return {"field": field, "type": "quantitative", "title": "reward", "scale": {"zero": False}}

    colour = {
        "type": "nominal",
        "title": None,
        "scale": {"domain": [CENTRE, MEMBERS], "range": [COLOURS[0], COLOURS[5]]},
    }
    tip = [{"field": "step", "title": "iteration"}, {"field": "generations"}]
    layers: list[Spec] = [
        {
            "data": {"values": band},
            "mark": {"type": "area", "opacity": 0.25},
            "encoding": {"x": x, "y": y("low"), "y2": {"field": "high"}, "color": {**colour, "datum": MEMBERS}},
        },
        {
            "data": {"values": band},
            "mark": {"type": "line", "strokeWidth": 1.5, "point": {"size": 20}},
            "encoding": {
                "x": x,
                "y": y("mean"),
                "color": {**colour, "datum": MEMBERS},
                "tooltip": [*tip, {"field": "mean", "format": ".4g"}, {"field": "std", "format": ".3g"}],
            },
        },
        {
            "data": {"values": list(centre)},
            "mark": {"type": "line", "strokeWidth": 2.5, "point": {"size": 60, "filled": True}},
            "encoding": {
                "x": x,
                "y": y("reward"),
                "color": {**colour, "datum": CENTRE},
                "tooltip": [*tip, {"field": "reward", "format": ".4g"}],
            },
        },
    ]
    return _figure({"layer": layers})


CENTRE, MEMBERS = "centre (the model you get)", "members (perturbed)"


def plane(points: Rows, by: str) -> Spec:
    """Reward against KL from the base, a point a checkpoint, and the Pareto front: no other point has more reward at no
    more KL. As Figure 1 of Qiu et al. `points`: reward, kl, generations, label, and `by`, whose values are coloured.
    """
    front = [p for p in sorted(points, key=lambda p: p["kl"]) if p in pareto(points)]
    encoding = {
        "x": {"field": "kl", "type": "quantitative", "title": "KL from the base model, nats a token"},
        "y": {"field": "reward", "type": "quantitative", "title": "reward", "scale": {"zero": False}},
    }
    order = list(dict.fromkeys(p[by] for p in points))
    layers: list[Spec] = [
        {
            "data": {"values": front},
            "mark": {"type": "line", "strokeDash": [5, 4], "opacity": 0.6, "color": COLOURS[5]},
            "encoding": {**encoding, "order": {"field": "kl"}},
        },
        {
            "data": {"values": list(points)},
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.9},
            "encoding": {
                **encoding,
                "color": {"field": by, "type": "nominal", "title": None, "scale": {"domain": order, "range": COLOURS}},
                "tooltip": [
                    {"field": "label", "title": "checkpoint"},
                    {"field": "generations"},
                    {"field": "reward", "format": ".4g"},
                    {"field": "kl", "format": ".3g", "title": "KL"},
                ],
            },
        },
        {
            "data": {"values": list(points)},
            "mark": {"type": "text", "dy": -11, "fontSize": 10, "color": COLOURS[5]},
            "encoding": {**encoding, "text": {"field": "generations"}},
        },
    ]
    return _figure({"layer": layers})


def pareto(points: Rows) -> list[Mapping[str, Any]]:
    """Those of which no other has at least as much reward at no more KL (and one of both better)."""
    return [
        p
        for p in points
        if not any(
            q["reward"] >= p["reward"] and q["kl"] <= p["kl"] and (q["reward"], q["kl"]) != (p["reward"], p["kl"])
            for q in points
        )
    ]


def histogram(values: Rows, title: str) -> Spec:
    """Rewards before and after, one over the other. `values`: reward, when."""
    order = list(dict.fromkeys(v["when"] for v in values))
    return _figure(
        {
            "data": {"values": list(values)},
            "mark": {"type": "bar", "opacity": 0.6, "binSpacing": 1},
            "encoding": {
                "x": {"field": "reward", "bin": {"maxbins": 24}, "type": "quantitative", "title": title},
                "y": {
                    "aggregate": "count",
                    "type": "quantitative",
                    "stack": None,
                    "title": "answers",
                    "axis": {"tickMinStep": 1, "format": "d"},
                },
                "color": {
                    "field": "when",
                    "type": "nominal",
                    "title": None,
                    "scale": {"domain": order, "range": [COLOURS[5], COLOURS[0]]},
                },
                "tooltip": [{"field": "when"}, {"aggregate": "count", "title": "answers"}],
            },
        },
        height=200,
    )


def timings(parts: Rows) -> Spec:
    """Where the time of each iteration went. `parts`: step, part, seconds."""
    order = list(dict.fromkeys(p["part"] for p in parts))
    return _figure(
        {
            "data": {"values": list(parts)},
            "mark": {"type": "bar"},
            "encoding": {
                "x": {
                    "field": "step",
                    "type": "ordinal",
                    "title": "iteration",
                    "axis": {"labelOverlap": True, "labelAngle": 0},
                },
                "y": {"field": "seconds", "type": "quantitative", "title": "seconds"},
                "color": {
                    "field": "part",
                    "type": "nominal",
                    "title": None,
                    "scale": {"domain": order, "range": COLOURS},
                },
                "tooltip": [{"field": "part"}, {"field": "seconds", "format": ".3g"}, {"field": "step"}],
            },
        },
        height=200,
    )


def fleet(points: Rows) -> Spec:
    """The share of the replicas' time that made answers. `points`: step, utilisation, replicas, lost."""
    tip = [{"field": "step", "title": "iteration"}, {"field": "utilisation", "format": ".0%"}]
    return _figure(
        {
            "data": {"values": list(points)},
            "mark": {"type": "line", "point": {"size": 50, "filled": True}, "color": COLOURS[0]},
            "encoding": {
                "x": {"field": "step", "type": "quantitative", "title": "iteration", "axis": {"tickMinStep": 1}},
                "y": {
                    "field": "utilisation",
                    "type": "quantitative",
                    "title": "of the replicas' time",
                    "axis": {"format": "%"},
                    "scale": {"domain": [0, 1]},
                },
                "tooltip": [*tip, {"field": "replicas"}, {"field": "lost", "title": "replicas lost"}],
            },
        },
        height=160,
    )


def curves(points: Rows, title: str = "reward", x: str = "generations") -> Spec:
    """Methods of a comparison over generations (or seconds). `points`: label, seed, generations, seconds, value."""
    order = list(dict.fromkeys(p["label"] for p in points))
    return _figure(
        {
            "data": {"values": list(points)},
            "mark": {"type": "line", "point": {"size": 50, "filled": True}},
            "encoding": {
                "x": {"field": x, "type": "quantitative", "title": _AXES[x]},
                "y": {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": False}},
                "color": {"field": "label", "type": "nominal", "title": None,
                          "scale": {"domain": order, "range": COLOURS}},
                "detail": {"field": "seed"},
                "tooltip": [{"field": "label"}, {"field": "seed"}, {"field": x, "format": ".4g"},
                            {"field": "value", "format": ".4g", "title": title}],
            },
        }
    )  # fmt: skip


_AXES = {"generations": "generations", "seconds": "seconds of training"}


def _figure(spec: Spec, height: int = 280) -> Spec:
    return {"$schema": _SCHEMA, "width": "container", "height": height, **spec}


def theme(dark: bool) -> Spec:
    """Vega-Lite's configuration, on the page's own background."""
    ink, faint = ("#d7dde3", "#3a434c") if dark else ("#27313a", "#dfe4e8")
    lines = {"gridColor": faint, "domainColor": faint, "tickColor": faint}
    sizes = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "tickCount": 8}
    font = "system-ui, sans-serif"
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {"labelColor": ink, "titleColor": ink, **lines, **sizes},
        "legend": {
            "orient": "top",
            "direction": "vertical",
            "labelColor": ink,
            "titleColor": ink,
            "labelLimit": 400,
            "labelFontSize": 12,
        },
        "header": {"labelColor": ink, "labelFontSize": 12, "labelFontWeight": "bold"},
        "text": {"fill": ink},
    }


def png(spec: Spec, width: int = 640) -> bytes:
    """A picture on white, at twice its size."""
    import vl_convert

    config = {**theme(dark=False), "background": "white"}
    drawn: bytes = vl_convert.vegalite_to_png({**spec, "width": width}, scale=2, config=config)
    return drawn


def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed, for pages that are read without a network."""
    import vl_convert

    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub forgets the default
