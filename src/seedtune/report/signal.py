"""Is it learning? What the metrics of the steps say, in one sentence each; and what happened to the center."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .format import number, plus_minus, setting
from .history import History, Rows

#: Noisy figures are means over so many iterations, at most.
_RECENT = 10


def reliabilities(h: History) -> list[dict[str, Any]]:
    """Of every iteration where it is known, with a standard error on either side."""
    known = [line for line in h.iterations if "es/reliability" in line]
    found = [(line["step"], line["es/reliability"], line.get("es/reliability_error", 0.0)) for line in known]
    return [{"step": step, "reliability": r, "low": r - error, "high": r + error} for step, r, error in found]


def step_kls(h: History) -> list[dict[str, Any]]:
    """KL of each step, predicted and measured, with the sigma and learning rate behind it."""
    names = {"predicted": "es/step_kl", "measured": "es/step_kl_measured"}
    return [
        {"step": line["step"], "kl": line[name], "what": what, "rate": line["learning_rate"], "sigma": line["es/sigma"]}
        for what, name in names.items()
        for line in h.iterations
        if name in line
    ]


def diversities(h: History) -> list[dict[str, Any]]:
    """Different answers per prompt, of the center at evaluations and of members in iterations; where that is known."""
    name = "completions/diversity"
    of_center = [(line["step"], line[f"eval/{name}"]) for line in h.evaluations if f"eval/{name}" in line]
    of_members = [(line["step"], line[name]) for line in h.iterations if name in line]
    both = (("center", of_center), ("members", of_members))
    return [{"step": step, "value": value, "what": what} for what, known in both for step, value in known]


def truths(h: History) -> list[dict[str, Any]]:
    """Gold metrics of the center over iterations, and the accuracy of a calibration reward's answers."""
    names = [*h.gold_metrics, "calibration/accuracy"]
    return [
        {"step": line["step"], "value": line[f"eval/{name}"], "what": name}
        for name in names
        for line in h.evaluations
        if isinstance(line.get(f"eval/{name}"), int | float)
    ]


def levels(h: History) -> list[dict[str, Any]]:
    """How much of each level of a curriculum members solved of late, over iterations."""
    column = (h.setting("curriculum") or {}).get("column", "level")
    return [
        {"step": line["step"], "value": value, "what": f"{column} {name.removeprefix('curriculum/')}"}
        for line in h.iterations
        for name, value in line.items()
        if name.startswith("curriculum/") and name != "curriculum/open"
    ]


def sentences(h: History) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each figure, as it is now. A figure that the run did not measure is left out."""
    explained: list[Callable[[History], tuple[str, str, str] | None]] = [
        _reliability, _correlation, _step_kl, _noise_cost, _diversity
    ]  # fmt: skip
    return [found for explain in explained if (found := explain(h))]


def _reliability(h: History) -> tuple[str, str, str] | None:
    if not (known := _with(h.iterations, "es/reliability")):
        return None
    r, error = known[-1]["es/reliability"], known[-1].get("es/reliability_error", 0.0)
    units, noun = (h.members_per_iteration // 2, "pairs") if h.is_antithetic else (h.members_per_iteration, "members")
    more = "more members, or more prompts per member, would tell"
    share = f"{100 * max(r, 0):.2g} %"
    if r <= error:
        said = (
            f"Within its error of 0: what {noun} differ by may be chance, and other prompts would favor other members; "
            f"{more}."
        )
    elif r < 2 * error:
        said = (
            f"About {share} of what {noun} differ by is signal that other prompts would show again, but less than two "
            f"standard errors from none: {more}."
        )
    else:
        four = 4 * r / (1 + 3 * r)  # Spearman and Brown
        worth = units * r
        said = (
            f"About {share} of what {noun} differ by is signal that other prompts would show again; the {units} {noun} "
            f"of an iteration say as much as {number(worth)} {noun if round(worth, 2) != 1 else noun[:-1]} without "
            f"noise would, and with four times the prompts each it would be about {100 * four:.2g} %."
        )
    return "reliability", plus_minus(r, error), said


def _correlation(h: History) -> tuple[str, str, str] | None:
    if not (known := _with(h.iterations, "es/mirrored_correlation")[-_RECENT:]):
        return None
    corr = sum(line["es/mirrored_correlation"] for line in known) / len(known)
    over = f"Mean of {len(known)} iterations" if len(known) > 1 else "Of one iteration"
    if corr > 0.1:
        said = (
            "the two members of a pair mostly gain or lose together, whichever way they go; their difference cancels "
            "that, so pairs pay."
        )
    elif corr < -0.1:
        said = (
            "what one member of a pair gains the other mostly loses, so there is little for their difference to "
            "cancel; single members (antithetic: false, fitness_shaping: group) may use completions better."
        )
    else:
        said = "near 0: the two members of a pair gain and lose independently, and pairs neither pay nor cost."
    return "mirrored correlation", f"{corr:.2f}", f"{over}: {said}"


def _step_kl(h: History) -> tuple[str, str, str] | None:
    known = [line for line in h.iterations if "es/step_kl" in line or "es/step_kl_measured" in line]
    if not known:
        return None
    last = known[-1]
    predicted, kl = last.get("es/step_kl"), last.get("es/step_kl_measured", last.get("es/step_kl"))
    if not kl > 0:
        why = "its direction was too uncertain to follow, or all members earned the same" if last[
            "learning_rate"
        ] == 0 else "it was too small to change what the model writes"  # fmt: skip
        return "step KL", number(kl), f"The last step did not move the center: {why}."
    said = f"The last step moved the center by {number(kl)} nats per token"
    if "es/step_kl_measured" not in last:
        said += ", predicted and not measured"
    elif predicted and not 1 / 3 < kl / predicted < 3:
        said += f", where {number(predicted)} was predicted"
    bound = float(h.setting("max_kl", 1.0))
    straight, random = math.sqrt(bound / kl), bound / kl
    if straight < 1.5:
        said += f": far too much, where {bound:g} from the base model counts as diverged; lower the learning rate."
    else:
        said += (
            f": about {straight:.0f} such steps in one direction, or {_rounded(random)} in directions of their own, "
            f"take it to max_kl, {bound:g} from the base model."
        )
    return "step KL", number(kl), said


def _noise_cost(h: History) -> tuple[str, str, str] | None:
    if not (known := _with(h.evaluations, "es/noise_cost")):
        return None
    step, cost = known[-1]["step"], known[-1]["es/noise_cost"]
    last = next((line for line in reversed(h.iterations) if line["step"] <= step), {})
    spread, error = last.get("reward_std", math.nan), last.get("es/reward_error", 0.0)
    if cost <= 2 * error:
        said = "Members earn about as much as the center (within two standard errors), so sigma is not too large."
    elif cost <= 2 * spread or math.isnan(spread):
        said = f"Members earn {number(cost)} less than the center"
        said += f", and differ by {number(spread)} (standard deviation)" if spread == spread else ""
        said += ": noise costs them something, but does not hide what they differ by."
    else:
        said = (
            f"Members earn {number(cost)} less than the center, {number(cost / spread)} times their standard "
            "deviation: noise breaks most of them before its direction shows, so sigma is too large (unless their "
            "prompts are much harder, or the center has only just improved)."
        )
    return "noise cost", number(cost), said


def _diversity(h: History) -> tuple[str, str, str] | None:
    name = "eval/completions/diversity"
    if not (known := _with(h.evaluations, name)):
        return None
    first, last = known[0][name], known[-1][name]
    if len(known) > 1 and last <= first / 2:
        said = (
            f"Answers to different prompts became alike: it was {number(first)} at first. The reward is for "
            "confidence, which is cheapest where all get the same answer; unless the prompts have few answers, read "
            "them."
        )
    else:
        said = "Different prompts get different answers: confidence is not earned by saying the same to all."
        said = said if last >= 0.5 else "There are few different answers, as at first: see if the prompts have no more."
    return "diversity", number(last), said


def _with(lines: Rows, name: str) -> Rows:
    return [line for line in lines if name in line]


def _rounded(count: float) -> str:
    """To one digit: it is an order of magnitude."""
    return f"{float(f'{count:.0e}'):.0f}"


def events(h: History) -> list[tuple[int, str]]:
    """What happened to the center, in order: after which iteration, and what."""
    found: list[tuple[int, int, str]] = []
    for line in h.evaluations:
        if line["step"] and line.get("es/best_step") == line["step"]:
            is_it = "The best center" if line["step"] == h.best else "The best center up to then"
            found.append((line["step"], 0, f"{is_it}: reward {number(line['eval/reward'])}."))
    for r in h.returns:
        back = f"Back to {where(r.to)}, with {setting(r.scale)} times the learning rate."
        found.append((r.t, 1, f"Diverged: {r.reason}. {back}"))
    if h.is_over and h.best is not None:
        found.append((len(h.journal), 2, f"The end; handed back is {where(h.best)}."))
    return [(t, what) for t, _, what in sorted(found)]


def where(t: int) -> str:
    """A center, by the iteration after which it was."""
    return f"the center after iteration {t}" if t else "the base model"
