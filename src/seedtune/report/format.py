"""Numbers, durations and texts, short enough to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..utils.messages import content_text, turns_of

_BARS = "▁▂▃▄▅▆▇█"
#: What people read for a metric's name; others are shown by their names.
LABELS = {
    "completions/mean_length": "tokens per completion",
    "completions/diversity": "different answers per prompt",
    "calibration/accuracy": "accuracy",
    "calibration/stated": "completions with a confidence",
    "calibration/brier": "Brier score",
    "calibration/expected_calibration_error": "expected calibration error",
    "completions/loss": "loss of the given completions, nats per token",
    "completions/perplexity": "their perplexity",
    "kl": "KL from the base, nats per token",
    "distance": "distance of the weights from the base",
    "perplexity": "perplexity of a held-out text",
}


def number(value: float | None) -> str:
    """Three significant digits, plain notation where it is readable."""
    if value is None or value != value:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.2e}"
    digits = max(0, 2 - len(str(int(abs(value)))) + 1) if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def plus_minus(value: float, error: float) -> str:
    """A value and its standard error, to two decimals: `0.12 ± 0.08`."""
    return f"{value:.2f} ± {error:.2f}"


def setting(value: float | str) -> str:
    """A setting, or what a run chose in its place: `0.0115`, `auto`."""
    return value if isinstance(value, str) else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """`1h02m`, `3m20s`, `45s`."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The last `width` values as bars."""
    shown = list(values)[-width:]
    low, high = min(shown), max(shown)
    if high == low:
        return _BARS[3] * len(shown)
    return "".join(_BARS[round((v - low) / (high - low) * (len(_BARS) - 1))] for v in shown)


def prompt_text(prompt: Any, limit: int) -> str:
    """A prompt's text, or its last message."""
    text = prompt if isinstance(prompt, str) else content_text(prompt[-1]["content"])
    return _short(text, limit)


def completion_text(row: Mapping[str, Any], limit: int) -> str:
    """A completion of a row of completions/ on one line, turns of a conversation one after another; `(empty)` for an
    empty one.
    """
    turns = turns_of(row.get("messages") or ())
    said = " | ".join(text if who == "assistant" else f"{who}: {text}" for who, text in turns)
    text = said if len(turns) > 1 else str(row["completion"])
    return _short(text, limit) if text.strip() else "(empty)"


def _short(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
