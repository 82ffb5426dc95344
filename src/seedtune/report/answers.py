"""The browser of answers: a prompt, what several models said to it, and what each earned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .words import number

_NOT_SCORES = {"member", "prompt_index", "prompt", "completion", "tokens", "truncated", "reward"}


def item(prompt: Any, answers: Sequence[tuple[str, Mapping[str, Any]]], truths: Sequence[str]) -> dict[str, Any]:
    """Answers are (who, row of `completions/`), the first of them the one that the others are compared with."""
    first = answers[0][1]
    kinds = {kind for _, row in answers[1:] for kind in _kinds(first, row, truths)}
    return {
        "prompt": prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt),
        "kinds": sorted(kinds),
        "answers": [
            {"who": who, "text": str(row["completion"]), "scores": _scores(row, first, truths)} for who, row in answers
        ],
    }


def _kinds(old: Mapping[str, Any], new: Mapping[str, Any], truths: Sequence[str]) -> set[str]:
    found = {_moved(old.get("reward"), new.get("reward"), "better", "worse") or "same"}
    found |= {f"{way}-{t}" for t in truths if (way := _moved(old.get(t), new.get(t), "won", "lost"))}
    return found


def _moved(old: Any, new: Any, up: str, down: str) -> str:
    if not isinstance(old, int | float) or not isinstance(new, int | float) or old == new:
        return ""
    return up if new > old else down


def _scores(row: Mapping[str, Any], first: Mapping[str, Any], truths: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name, value, and whether that is better or worse than the first answer's."""
    others = [k for k, v in row.items() if k not in _NOT_SCORES and (isinstance(v, int | float) or v is None)]
    names = ["reward", *(k for k in others if k in truths or row[k] != row["reward"])]  # the only one is the reward
    found = [(name, number(row.get(name)), _moved(first.get(name), row.get(name), "good", "bad")) for name in names]
    return [*found, ("tokens", str(row.get("tokens", "–")), "")]
