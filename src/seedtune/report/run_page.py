"""The page of a run: how the reward changed, what it cost, how far the weights moved."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.paths import AnyPath, local_path
from . import figures, html, signal
from .completions import item
from .format import LABELS, duration, number, setting
from .history import History, read


def write(run: AnyPath, out: AnyPath | None = None, refresh: int = 0) -> Path:
    """`report/index.html` and PNGs in the run's folder (or in `out`); returns the page.

    Raises RunFolderError, JournalError, SaveError.
    """
    history = read(run)
    target = local_path(out) if out else history.folder / "report"
    return html.write(target, "run.html", context(history), drawings(history), refresh)


def drawings(h: History) -> dict[str, figures.Spec]:
    """The figures that there is data for."""
    found = {}
    center = [{**_at(h, e), "reward": e["eval/reward"]} for e in h.evaluations]
    returns = [{**_at(h, r.t), "to": signal.where(r.to), "text": _back(r.to)} for r in h.returns]
    if h.journal:
        best = [c for c in center if c["step"] == h.best] if len(center) > 1 else []
        found["training"] = figures.training(h.members, _branches(h, center), best, returns)
    if len(reliabilities := signal.reliabilities(h)) > 1:
        found["reliability"] = figures.reliability(reliabilities, returns)
    steps = signal.step_kls(h)
    if len({step["step"] for step in steps if step["kl"] > 0}) > 1:
        found["step_kl"] = figures.step_kl(steps, returns)
    if levels := signal.levels(h):
        found["levels"] = figures.lines(levels, "solved")
    if len(signal.diversities(h)) > 1:
        found["diversity"] = figures.lines(signal.diversities(h), "different answers per prompt")
        if truths := signal.truths(h):
            found["truth"] = figures.lines(truths, "measured, never optimized")
    points = [
        {**p, "kl": e["eval/kl"], "label": f"iteration {p['step']}", "what": _what(h, p)}
        for p, e in zip(center, h.evaluations, strict=True)
        if isinstance(e.get("eval/kl"), float)
    ]
    if len(points) > 1:
        found["plane"] = figures.plane(points, by="what")
    if values := _before_and_after(h):
        found["histogram"] = figures.histogram(values, "reward")
    parts = [
        {"step": line["step"], "part": key.removeprefix("time/"), "seconds": line[key]}
        for line in [*h.iterations, *h.evaluations]
        for key in line
        if key.startswith("time/")
    ]
    if parts:
        found["timings"] = figures.timings(parts)
    fleet = [
        {"step": line["step"], **{name: line[f"fleet/{name}"] for name in ("utilization", "replicas", "lost")}}
        for line in h.iterations
        if "fleet/utilization" in line
    ]
    if fleet:
        found["fleet"] = figures.fleet(fleet)
    return found


def _at(h: History, step: int | Mapping[str, Any]) -> dict[str, Any]:
    t = step if isinstance(step, int) else step["step"]
    return {"step": t, "completions": h.num_completions(t)}


def _back(to: int) -> str:
    return f"back to {to}" if to else "back to the base"


def _what(h: History, point: Mapping[str, Any]) -> str:
    return "best center" if h.best == point["step"] > 0 else "center"


def _branches(h: History, center: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The line of the center, which breaks at a return: from there it goes on at the center that was returned to."""
    if not h.returns:
        return center
    found, rewards = [], {c["step"]: c["reward"] for c in center}
    starts = [0, *(r.t for r in h.returns)]
    for branch, (start, end) in enumerate(zip(starts, [*starts[1:], math.inf], strict=True)):
        if branch and (to := h.returns[branch - 1].to) in rewards:
            found.append({**_at(h, start), "step": to, "reward": rewards[to], "branch": branch})
        found += [
            {**c, "branch": branch} for c in center if start <= c["step"] <= end and (c["step"] > start or not branch)
        ]
    return found


def _before_and_after(h: History) -> list[dict[str, Any]]:
    """Rewards of the center's completions where there are some before and after, else those of the members."""
    if h.before and h.after:
        first, last = h.evaluations[0]["step"], h.compared["step"]
        rows = {f"center after iteration {first}": h.before, f"center after iteration {last}": h.after}
        return [{"reward": row["reward"], "when": when} for when, some in rows.items() for row in some]
    if len(h.journal) < 2:
        return []
    ends = (h.journal[0], h.journal[-1])
    return [{"reward": r, "when": f"members of iteration {it.t}"} for it in ends for r in it.rewards_M]


def context(h: History) -> dict[str, Any]:
    """What the template shows. Numbers are text already."""
    done, planned = len(h.journal), _planned(h)
    after = bool(h.before and h.after)
    pairs = zip(h.before, h.after, strict=False)
    items = [item(old["prompt"], [("before", old), (_after(h), new)], h.gold_metrics) for old, new in pairs]
    counts = {kind: sum(kind in one["kinds"] for one in items) for kind in _ORDER}
    items.sort(key=lambda one: next(n for n, kind in enumerate(_ORDER) if kind in one["kinds"]))
    return {
        "title": f"{h.model}, {' + '.join(_rewards(h)) or 'fine-tuned'}",
        "state": f"running: iteration {done} of {planned}" if h.running else f"{done} iterations",
        "running": h.running,
        "lead": _lead(h),
        "warnings": _warnings(h),
        "meanings": signal.sentences(h),
        "events": signal.events(h),
        "best_known": h.best is not None and len(h.evaluations) > 1,
        "returned": bool(h.returns),
        "tiles": _tiles(h),
        "evaluated_on": f"{h.num_eval_prompts} prompts" if h.before else "the evaluation prompts",
        "histogram_of": f"Of {_completions(h)}." if after else "Of members, on their training prompts.",
        "completions_of": _completions(h),
        "reads": h.reads,
        "items": items,
        "changed": ", ".join(f"{counts[kind]} {word}" for kind, word in _ORDER.items()),
        "kinds": _kinds(h.gold_metrics),
        "columns": _columns(h),
        "evaluations": [
            {"step": e["step"], "is_best": e["step"] == h.best and len(h.evaluations) > 1,
             "cells": [_cell(e, name) for name in _names(h)]}
            for e in h.evaluations
        ],
        "commands": _commands(h),
        "facts": _facts(h),
        "settings": h.settings or json.dumps(h.config, indent=2),
        "environment": json.dumps(h.environment or h.header.get("software", {}), indent=2),
    }  # fmt: skip


#: How completions are sorted, by what became of their reward.
_ORDER = {"better": "went up", "worse": "went down", "same": "did not change"}


def _rewards(h: History) -> list[str]:
    return list(dict.fromkeys(key.split("/")[1] for line in h.iterations for key in line if key.startswith("rewards/")))


def _planned(h: History) -> Any:
    return h.setting("max_steps", "?")


def _is_rejected(h: History) -> bool:
    """Whether the center that the page compares with the base model is one that is not handed back."""
    return h.best == 0 and bool(h.compared)


def _completions(h: History) -> str:
    """What evaluations score."""
    if h.reads:
        return "the given completions, which the center read"
    return "the completions that the center drew" if h.config.get("temperature") else "the center's greedy completions"


def _after(h: History) -> str:
    """What the completions that those of before are compared with come from."""
    if h.best is None:
        return "after"
    kept = "not kept" if _is_rejected(h) else "the best"
    return f"after iteration {h.compared['step']}, {kept}"


def _lead(h: History) -> list[str]:
    """A summary for readers who have not read the paper."""
    if not h.journal:
        return ["No iteration is done yet."]
    seconds = sum(v for line in [*h.iterations, *h.evaluations] for k, v in line.items() if k.startswith("time/"))
    done, members = len(h.journal), h.members_per_iteration
    cost = f"{done} iterations of {members} members, {h.num_completions(done)} completions, {duration(seconds)}"
    said = [f"Trained by perturbing the weights with noise, with forward passes only: {cost}."]
    if len(h.evaluations) < 2:
        return said
    first, last, rejected = h.evaluations[0], h.compared, _is_rejected(h)
    count = h.num_eval_prompts if h.after else "the evaluation"
    text = f"On {count} prompts the mean reward went from {number(first['eval/reward'])} to "
    text += f"{number(last['eval/reward'])}"
    for name in h.gold_metrics[:1]:
        text += f", and {name}, which is measured and never optimized, from {_cell(first, name)} to {_cell(last, name)}"
    if h.best is not None:
        which = "the last center, which is not kept" if rejected else f"the best center, {_one(h.best)}"
        text += f". That is {which}"
    said.append(text + ".")
    if isinstance(kl := last.get("eval/kl"), float) and h.reads:
        said.append(f"Its KL from the base model is {number(kl)} nats per token of the given completions.")
    elif isinstance(kl, float):
        said.append(
            f"Its KL from the base model is {number(kl)} nats per token: to the base model, a token that it writes is "
            f"{number(math.exp(min(kl, 50)))} times less likely, on the geometric mean. 0 would be no change."
        )
    return said


def _one(step: int) -> str:
    return f"the one after iteration {step}"


def _warnings(h: History) -> list[str]:
    found = [*h.notes, *_setbacks(h)]
    if h.compared.get("eval/hacked"):
        first, last = h.evaluations[0], h.compared
        fell = [n for n in h.gold_metrics if last.get(f"eval/{n}", 0) < first.get(f"eval/{n}", 0)]
        changes = "; ".join(f"{n} from {_cell(first, n)} to {_cell(last, n)}" for n in fell)
        how = f"gold metrics fell ({changes})" if fell else "a gold metric stayed at its least, or answers became alike"
        found.append(f"The reward rose while {how}: it may be hacked. Read the completions.")
    return [note[:1].upper() + note[1:].rstrip(".") + "." for note in found]


def _setbacks(h: History) -> list[str]:
    """What went wrong on the way: the base model is handed back, the last center is below it, the run returned."""
    found = []
    first, end = (h.evaluations[0], h.evaluations[-1]) if len(h.evaluations) > 1 else ({}, {})
    is_below = bool(end) and end["eval/reward"] < first["eval/reward"]
    rewards = f"reward {number(end['eval/reward'])} against {number(first['eval/reward'])}" if end else ""
    if _is_rejected(h):
        handed_back = ", so the base model is handed back" if h.is_over else " so far"
        found.append(
            f"No center of this run is better than the base model by more than chance explains{handed_back}. "
            f"What is shown as after iteration {end['step']} is the last center, which is not kept ({rewards})"
        )
    elif is_below and h.best is not None:
        found.append(f"The last center is below the base model ({rewards}); the best one, {_one(h.best)}, is kept")
    elif is_below and h.header.get("guard"):
        found.append(
            f"The run ended below the base model ({rewards}); load_best_model_at_end: true hands back the best center"
        )
    if collapsed := [e["step"] for e in h.evaluations if e.get("eval/collapsed")]:
        found.append(
            f"Different prompts got the same answer after iteration {collapsed[0]}: the reward needs no labels, and "
            "the model earned it by saying the same to all. Such a center never counts as the best"
        )
    if h.returns:
        count, steps = len(h.returns), ", ".join(str(r.t) for r in h.returns)
        times = f"{count} times (after iterations {steps})" if count > 1 else f"once (after iteration {steps})"
        scale, rate = math.prod(r.scale for r in h.returns), h.config["learning_rate"]
        given = "auto chose" if rate == "auto" else f"was set ({setting(rate)})"
        found.append(
            f"The run diverged and returned to an earlier center {times}; its learning rate ended at {setting(scale)} "
            f"times what {given}. Begin the next run with a smaller one"
        )
    return found


def _tiles(h: History) -> list[dict[str, str]]:
    if not h.evaluations:
        return [{"value": number(m["mean"]), "label": f"members' reward, iteration {m['step']}"}
                for m in h.members[:1] + h.members[1:][-1:]]  # fmt: skip
    first, last = h.evaluations[0], h.compared or h.evaluations[0]
    tiles = []
    for name in _names(h):
        if name != "reward_std":
            old, new = _cell(first, name), _cell(last, name)
            tiles.append({"value": new if old == new else f"{old} → {new}", "label": LABELS.get(name, name)})
    return tiles


def _names(h: History) -> list[str]:
    known = ["reward", *h.gold_metrics, *LABELS]
    return [n for n in known if any(f"eval/{n}" in e for e in h.evaluations)]


def _columns(h: History) -> list[str]:
    return [LABELS.get(name, name) for name in _names(h)]


def _cell(line: Mapping[str, Any], name: str) -> str:
    value = line.get(f"eval/{name}")
    text = number(value) if isinstance(value, int | float) else "–"
    if name == "kl" and line.get("eval/kl_ci95"):
        text += f" ± {number(line['eval/kl_ci95'])}"
    return text


def _kinds(gold_metrics: Sequence[str]) -> list[tuple[str, str]]:
    kinds = [("better", "reward went up"), ("worse", "reward went down"), ("same", "reward unchanged")]
    return kinds + [(f"{way}-{name}", f"{way} {name}") for name in gold_metrics for way in ("won", "lost")]


def _commands(h: History) -> list[str]:
    run, config = h.folder, h.folder / "config.resolved.yaml"
    commands = (
        [f"seedtune train --config {config} --output_dir {run}-again"] if "model_name_or_path" in h.settings else []
    )
    if _is_rejected(h):  # there is no better center to rebuild or export
        return [*commands, f"seedtune replay {run} --until last --out {run}-last"]
    commands.append(f"seedtune replay {run} --out {run}-weights")
    return [*commands, f"seedtune export {run} --patch {run.name}.seedtune", f"seedtune eval {run}"]


def _facts(h: History) -> list[tuple[str, str]]:
    base = h.header["base"]
    best = f"{h.journal[h.best - 1].digest}, after iteration {h.best}" if h.best else ""
    return [
        ("base model", f"{base['model']}, digest {base['digest']}"),
        ("weights in scope", f"{base['moved']:,} of {base['parameters']:,}"),
        *([("weights of the best center, digest", best)] if best else []),
        ("weights after the last iteration, digest", h.journal[-1].digest if h.journal else "–"),
        ("seed", str(h.config["seed"])),
        ("sigma, learning rate", f"{_used(h, 'sigma')}, {_used(h, 'learning_rate')}"),
        ("checkpoints", ", ".join(h.checkpoints) or "none; seedtune replay rebuilds the weights from the journal"),
    ]


def _used(h: History, name: str) -> str:
    """The setting, and what it was over iterations where the run chose or changed it."""
    metric = {"sigma": "es/sigma"}.get(name, name)
    given, values = h.setting(name, h.config[name]), [line[metric] for line in h.iterations if metric in line]
    text = given if isinstance(given, str) else number(given)
    if not values or (values[0] == given and min(values) == max(values)):
        return text
    ends = list(dict.fromkeys([setting(min(values)), setting(max(values))]))
    return f"{text} ({' to '.join(ends)})"
