"""Figures as Vega-Lite specifications: each is drawn in the page and written as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

#: Readable on white and on near-black, and distinct for color-blind readers.
COLORS = ["#0f9d8a", "#e07a3f", "#6d7fd6", "#c2508f", "#a08a2c", "#7a8793"]
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


def training(members: Rows, center: Rows, best: Rows = (), returns: Rows = ()) -> Spec:
    """The reward over completions: a band for members (mean ± standard deviation), a line for the center.

    `members`: completions, mean, std; `center`: completions, reward, step, and `branch` where a return begins a line of
    its own; `best`: the center that is handed back, as in `center`; `returns`: completions, step, to, text.
    """
    x = _number("completions", "completions (members × prompts)")
    band = [{**m, "low": m["mean"] - m["std"], "high": m["mean"] + m["std"]} for m in members]
    of_center = CENTERS if best else CENTER

    def layer(rows: Rows, mark: Spec, y: str, who: str, **encoding: Any) -> Spec:
        color = {**_nominal(None, [of_center, MEMBERS], [COLORS[0], COLORS[5]]), "datum": who}
        encoding = {"x": x, "y": _number(y, "reward", scale={"zero": False}), "color": color, **encoding}
        return {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding}

    tip = [_tip("step", title="iteration"), _tip("completions")]
    branches = {"detail": {"field": "branch"}} if returns else {}
    marked = [{**b, "text": "best"} for b in best]
    return _figure(
        layer=[
            layer(band, {"type": "area", "opacity": 0.25}, "low", MEMBERS, y2={"field": "high"}),
            layer(band, {"type": "line", "strokeWidth": 1.5, "point": {"size": 20}}, "mean", MEMBERS,
                  tooltip=[*tip, _tip("mean", ".4g"), _tip("std", ".3g")]),
            layer(center, {"type": "line", "strokeWidth": 2.5, "point": {"size": 60, "filled": True}}, "reward",
                  of_center, tooltip=[*tip, _tip("reward", ".4g")], **branches),
            *([layer(marked, {"type": "point", "size": 300, "strokeWidth": 2.5}, "reward", of_center),
               layer(marked, {"type": "text", "dy": -17, "fontSize": 11}, "reward", of_center,
                     text={"field": "text"})] if marked else []),
            *[mark for row, r in enumerate(returns) for mark in _return(r, x, row)],
        ]
    )  # fmt: skip


def _return(at: Mapping[str, Any], x: Spec, row: int) -> list[Spec]:
    """A vertical line where the run returned, with its text on a line of its own, as returns may be close together."""
    data, tip = {"values": [dict(at)]}, [_tip("step", title="iteration"), _tip("to", title="back to")]
    rule = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.5, "color": COLORS[1]}
    text = {"type": "text", "align": "left", "dx": 4, "fontSize": 11, "color": COLORS[1]}
    shown = {"x": x, "y": {"value": 6 + 14 * row}, "text": {"field": "text"}}
    return [
        {"data": data, "mark": rule, "encoding": {"x": x, "tooltip": tip}},
        {"data": data, "mark": text, "encoding": shown},
    ]


CENTER, CENTERS, MEMBERS = "center (the model you get)", "center (you get the best)", "members (perturbed)"


def reliability(points: Rows, returns: Rows = ()) -> Spec:
    """Over iterations, with one standard error on either side. `points`: step, reliability, low, high."""
    x = _iteration(points)
    tip = [_tip("step", title="iteration"), _tip("reliability", ".2f"), _tip("low", ".2f"), _tip("high", ".2f")]
    point = {"size": 40, "filled": True, "color": COLORS[0]}

    def layer(mark: Spec, y: str, **encoding: Any) -> Spec:
        at = {"x": x, "y": _number(y, "reliability")}
        return {"data": {"values": list(points)}, "mark": {**mark, "color": COLORS[0]}, "encoding": {**at, **encoding}}

    return _figure(
        layer=[
            {"data": {"values": [{"zero": 0}]}, "mark": {"type": "rule", "color": COLORS[5]},
             "encoding": {"y": _number("zero", "reliability")}},
            layer({"type": "area", "opacity": 0.25}, "low", y2={"field": "high"}),
            layer({"type": "line", "point": point}, "reliability", tooltip=tip),
            *_returned(returns, x),
        ],
        height=170,
    )  # fmt: skip


def step_kl(points: Rows, returns: Rows = ()) -> Spec:
    """How far each step moved the center, on a logarithmic scale where that varies much. `points`: step, kl, what
    (predicted or measured), sigma, rate. Steps of 0 are not drawn.
    """
    drawn, kinds = [p for p in points if p["kl"] > 0], ["predicted", "measured"]
    sizes = [p["kl"] for p in drawn if math.isfinite(p["kl"])] or [1.0]
    scale = {"type": "log"} if max(sizes) > 30 * min(sizes) else {"zero": True}
    tip = [_tip("step", title="iteration"), _tip("what"), _tip("kl", ".3g", "KL"), _tip("sigma", ".3g")]
    encoding = {
        "x": _iteration(points),
        "y": _number("kl", "step KL (dashed: predicted)", scale=scale, axis={"tickCount": 5, "format": "~g"}),
        "color": {**_nominal("what", kinds, [COLORS[5], COLORS[0]]), "legend": None},
        "strokeDash": {"field": "what", "scale": {"domain": kinds, "range": [[4, 3], [1, 0]]}, "legend": None},
        "tooltip": [*tip, _tip("rate", ".3g", "learning rate")],
    }
    line = {"data": {"values": drawn}, "mark": {"type": "line", "point": {"size": 40, "filled": True}}}
    return _figure(layer=[{**line, "encoding": encoding}, *_returned(returns, _iteration(points))], height=170)


def _iteration(points: Rows) -> Spec:
    """An axis over all their iterations, with at most ten of them named."""
    first, last = min(p["step"] for p in points), max(p["step"] for p in points)
    named = list(range(first, last + 1, max(1, math.ceil((last - first) / 9))))
    return _number("step", "iteration", axis={"values": named, "format": "d"}, scale={"domain": [first, last]})


def _returned(returns: Rows, x: Spec) -> list[Spec]:
    """Vertical lines behind the iterations at which the run returned."""
    rule = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.5, "color": COLORS[1]}
    encoding = {"x": x, "tooltip": [_tip("step", title="iteration"), _tip("to", title="back to")]}
    return [{"data": {"values": list(returns)}, "mark": rule, "encoding": encoding}] if returns else []


def plane(points: Rows, by: str) -> Spec:
    """Reward against KL from the base, a point per checkpoint, and the Pareto front: no other has more reward at no
    more KL. As Figure 1 of Qiu et al. `points`: reward, kl, completions, label, and `by`, whose values are colored.
    """
    front = [p for p in sorted(points, key=lambda p: p["kl"]) if p in pareto(points)]
    encoding = {
        "x": _number("kl", "KL from the base model, nats per token"),
        "y": _number("reward", "reward", scale={"zero": False}),
    }
    tooltip = [_tip("label", title="checkpoint"), _tip("completions"), _tip("reward", ".4g"), _tip("kl", ".3g", "KL")]
    layers: list[Spec] = [
        {
            "data": {"values": front},
            "mark": {"type": "line", "strokeDash": [5, 4], "opacity": 0.6, "color": COLORS[5]},
            "encoding": {**encoding, "order": {"field": "kl"}},
        },
        {
            "data": {"values": list(points)},
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.9},
            "encoding": {**encoding, "color": _nominal(by, _order(points, by), COLORS), "tooltip": tooltip},
        },
        {
            "data": {"values": list(points)},
            "mark": {"type": "text", "dy": -11, "fontSize": 10, "color": COLORS[5]},
            "encoding": {**encoding, "text": {"field": "completions"}},
        },
    ]
    return _figure(layer=layers)


def pareto(points: Rows) -> list[Mapping[str, Any]]:
    """Points to which no other has at least as much reward at no more KL, with one of the two strictly better."""
    return [
        p
        for p in points
        if not any(
            q["reward"] >= p["reward"] and q["kl"] <= p["kl"] and (q["reward"], q["kl"]) != (p["reward"], p["kl"])
            for q in points
        )
    ]


def histogram(values: Rows, title: str) -> Spec:
    """Rewards before and after, overlaid. `values`: reward, when."""
    return _figure(
        data={"values": list(values)},
        mark={"type": "bar", "opacity": 0.6, "binSpacing": 1},
        encoding={
            "x": _number("reward", title, bin={"maxbins": 24}),
            "y": {
                "aggregate": "count",
                "type": "quantitative",
                "stack": None,
                "title": "completions",
                "axis": {"tickMinStep": 1, "format": "d"},
            },
            "color": _nominal("when", _order(values, "when"), [COLORS[5], COLORS[0]]),
            "tooltip": [_tip("when"), {"aggregate": "count", "title": "completions"}],
        },
        height=200,
    )


def timings(parts: Rows) -> Spec:
    """The time of each iteration by part. `parts`: step, part, seconds."""
    axis = {"labelOverlap": True, "labelAngle": 0}
    return _figure(
        data={"values": list(parts)},
        mark={"type": "bar"},
        encoding={
            "x": {"field": "step", "type": "ordinal", "title": "iteration", "axis": axis},
            "y": _number("seconds", "seconds"),
            "color": _nominal("part", _order(parts, "part"), COLORS),
            "tooltip": [_tip("part"), _tip("seconds", ".3g"), _tip("step")],
        },
        height=200,
    )


def lines(points: Rows, title: str) -> Spec:
    """Values over iterations, a line for each of `what`. `points`: step, value, what."""
    tip = [_tip("step", title="iteration"), _tip("what"), _tip("value", ".3g")]
    encoding = {
        "x": _iteration(points),
        "y": _number("value", title, scale={"zero": True}),
        "color": _nominal("what", _order(points, "what"), COLORS),
        "tooltip": tip,
    }
    mark = {"type": "line", "point": {"size": 40, "filled": True}}
    return _figure(layer=[{"data": {"values": list(points)}, "mark": mark, "encoding": encoding}], height=170)


def fleet(points: Rows) -> Spec:
    """The share of the replicas' time spent on completions. `points`: step, utilization, replicas, lost."""
    tip = [_tip("step", title="iteration"), _tip("utilization", ".0%")]
    scale = {"domain": [0, 1]}
    return _figure(
        data={"values": list(points)},
        mark={"type": "line", "point": {"size": 50, "filled": True}, "color": COLORS[0]},
        encoding={
            "x": _number("step", "iteration", axis={"tickMinStep": 1}),
            "y": _number("utilization", "of the replicas' time", axis={"format": "%"}, scale=scale),
            "tooltip": [*tip, _tip("replicas"), _tip("lost", title="replicas lost")],
        },
        height=160,
    )


def curves(points: Rows, title: str = "reward", x: str = "completions") -> Spec:
    """Methods of a comparison over completions (or seconds). `points`: label, seed, completions, seconds, value."""
    return _figure(
        data={"values": list(points)},
        mark={"type": "line", "point": {"size": 50, "filled": True}},
        encoding={
            "x": _number(x, {"completions": "completions", "seconds": "seconds of training"}[x]),
            "y": _number("value", title, scale={"zero": False}),
            "color": _nominal("label", _order(points, "label"), COLORS),
            "detail": {"field": "seed"},
            "tooltip": [_tip("label"), _tip("seed"), _tip(x, ".4g"), _tip("value", ".4g", title)],
        },
    )


def _number(field: str, title: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **more}


def _nominal(field: str | None, domain: Sequence[str], colors: Sequence[str]) -> Spec:
    named = {"field": field} if field else {}
    return {**named, "type": "nominal", "title": None, "scale": {"domain": list(domain), "range": list(colors)}}


def _tip(field: str, format: str = "", title: str = "") -> Spec:
    return {"field": field, **({"format": format} if format else {}), **({"title": title} if title else {})}


def _order(rows: Rows, field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))


def _figure(height: int = 280, **spec: Any) -> Spec:
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


def by_iteration(members: Rows, center: Rows) -> Spec:
    """The reward over iterations, of a run that goes on. `members`: step, mean, std; `center`: step, reward."""
    x = _number("step", "iteration", axis={"tickMinStep": 1, "format": "d"})
    band = [{"step": m["step"], "low": m["mean"] - m["std"], "high": m["mean"] + m["std"]} for m in members]

    def layer(rows: Rows, mark: Spec, y: str, who: str, **encoding: Any) -> Spec:
        color = {**_nominal(None, [CENTER, MEMBERS], [COLORS[0], COLORS[5]]), "datum": who}
        at = {"x": x, "y": _number(y, "reward", scale={"zero": False})}
        return {"data": {"values": list(rows)}, "mark": mark, "encoding": {**at, "color": color, **encoding}}

    dots = {"size": 40, "filled": True}
    return _figure(
        layer=[
            layer(band, {"type": "area", "opacity": 0.25}, "low", MEMBERS, y2={"field": "high"}),
            layer(members, {"type": "line", "point": {"size": 20}}, "mean", MEMBERS),
            layer(center, {"type": "line", "strokeWidth": 2.5, "point": dots}, "reward", CENTER),
        ],
        height=160,
    )


def svg(spec: Spec, width: int = 560) -> str:
    """A drawing without a background, readable on white and on near-black."""
    import vl_convert

    gray = COLORS[5]
    axis = {"labelColor": gray, "titleColor": gray, "domainColor": gray, "tickColor": gray, "gridOpacity": 0.3}
    legend = {"orient": "top", "labelColor": gray, "labelLimit": 400}
    config = {"background": "transparent", "view": {"stroke": None}, "axis": axis, "legend": legend}
    return str(vl_convert.vegalite_to_svg({**spec, "width": width}, config=config))


def png(spec: Spec, width: int = 640) -> bytes:
    """A picture on white, at twice the resolution."""
    import vl_convert

    config = {**theme(dark=False), "background": "white"}
    drawn: bytes = vl_convert.vegalite_to_png({**spec, "width": width}, scale=2, config=config)
    return drawn


def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed, for pages that are read without a network."""
    import vl_convert

    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub forgets the default
