"""The browser of completions: a prompt, the completions of several models, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..utils.messages import message_text, turns_of
from .format import number

_NOT_SCORES = {
    "member", "prompt_index", "prompt", "completion", "tokens", "truncated", "reward", "sample", "prompt_reward",
}  # fmt: skip


def item(prompt: Any, rows: Sequence[tuple[str, Mapping[str, Any]]], gold_metrics: Sequence[str]) -> dict[str, Any]:
    """Rows are (model, row of `completions/`); the others are compared with the first."""
    first = rows[0][1]
    kinds = {kind for _, row in rows[1:] for kind in _kinds(first, row, gold_metrics)}
    return {
        "prompt": prompt if isinstance(prompt, str) else message_text(prompt[-1]),
        "earlier": [] if isinstance(prompt, str) else turns_of(prompt[:-1]),
        "kinds": sorted(kinds),
        "completions": [
            {
                "model": model,
                "text": str(row["completion"]),
                "turns": turns_of(row.get("messages") or ()),
                "scores": _scores(row, first, gold_metrics),
            }
            for model, row in rows
        ],
    }


def _kinds(old: Mapping[str, Any], new: Mapping[str, Any], gold_metrics: Sequence[str]) -> set[str]:
    found = {_change(old.get("reward"), new.get("reward"), "better", "worse") or "same"}
    found |= {f"{way}-{m}" for m in gold_metrics if (way := _change(old.get(m), new.get(m), "won", "lost"))}
    return found


def _change(old: Any, new: Any, up: str, down: str) -> str:
    if not isinstance(old, int | float) or not isinstance(new, int | float) or old == new:
        return ""
    return up if new > old else down


def _scores(
    row: Mapping[str, Any], first: Mapping[str, Any], gold_metrics: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Name, value, and whether that is better or worse than the first completion's."""
    others = [k for k, v in row.items() if k not in _NOT_SCORES and (isinstance(v, int | float) or v is None)]
    names = [
        "reward",
        *(k for k in others if k in gold_metrics or row[k] != row["reward"]),
    ]  # a single one is the reward
    found = [(name, number(row.get(name)), _change(first.get(name), row.get(name), "good", "bad")) for name in names]
    return [*found, ("tokens", str(row.get("tokens", "–")), "")]
