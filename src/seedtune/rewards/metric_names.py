"""Names of what a run measures. What a reward function logs, or is called, must not stand in for it."""

from __future__ import annotations

from collections.abc import Collection

#: Metrics of an evaluation of the center, without `eval/`.
EVALUATION = frozenset("reward reward_std loss kl kl_ci95 distance perplexity hacked".split())
#: These, those of an iteration, and what stands beside them in metrics.jsonl and in logs.
METRICS = EVALUATION | set("num_tokens learning_rate tokens_per_second step epoch control total_flos".split())
#: How names of other metrics begin.
PREFIXES = ("eval/", "eval_", "rewards/", "completions/", "es/", "time/", "fleet/", "curriculum/", "tools/")
#: Columns of completions/.
COLUMNS = frozenset(
    "member prompt_index prompt completion tokens truncated reward sample prompt_reward messages".split()
)


def check_metric(name: object, functions: Collection[str]) -> None:
    """Raise ValueError for what `log_metric` may not be given as a name; `functions`: names of reward functions."""
    _check_text("log_metric", name)
    if name in METRICS or str(name).startswith(PREFIXES):
        raise ValueError(f"log_metric({name!r}, ...): the run itself measures what is called so. Give it another name")
    if name in functions:
        raise ValueError(f"log_metric({name!r}, ...): a reward function is called so. Give it another name")


def check_column(name: object, functions: Collection[str]) -> None:
    """As `check_metric`, for `log_extra`."""
    _check_text("log_extra", name)
    if name in COLUMNS or name in functions:
        raise ValueError(f"log_extra({name!r}, ...): completions/ has a column of that name. Give it another name")


def column_of(function: str) -> str:
    """The column of completions/ that holds the rewards of the function of that name."""
    return f"rewards/{function}" if function in COLUMNS else function


def _check_text(where: str, name: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}({name!r}, ...): a name is a text that is not empty")
