"""How a run ended, on a terminal: completions before and after, the metrics, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .format import LABELS, completion_text, number, prompt_text

#: Columns of a terminal from which completions stand beside each other.
_WIDE = 100


@dataclass(frozen=True)
class Summary:
    """How a run ended: what `finish` prints. Rows are those of `completions/eval-*.jsonl`. `center`: after which
    iteration the center was what it is now (0: the base model), `best`: after which it was best; None: not known.
    """

    why: str
    before: Sequence[Mapping[str, Any]]
    after: Sequence[Mapping[str, Any]]
    metrics_before: Mapping[str, float]
    metrics_after: Mapping[str, float]
    held_out: bool
    output_dir: str
    checkpoint: str | None
    next_commands: Sequence[str]
    center: int | None = None
    best: int | None = None

    @property
    def standing(self) -> str:
        """What the center `after` is, where that needs saying: the best one, or one that is not kept."""
        step = self.metrics_after.get("step")
        if self.center is None or step is None:
            return ""
        if self.center < step:
            return "the last center, not kept"
        return "the best center" if self.center == step == self.best else ""


def closing(summary: Summary, fleet: Sequence[Mapping[str, float]] = (), most: int = 8) -> RenderableType:
    """Completions before and after (`most` of them), the metrics, statistics of the replicas, and what to do next."""
    shown, standing = min(len(summary.after), len(summary.before), most), summary.standing
    kept = not standing.endswith("not kept")
    color = "green" if kept else "yellow"
    after = f"after ({'best' if kept else 'not kept'})" if standing else "after"
    parts: list[RenderableType] = [Text(f"\n{summary.why}", style="bold")]
    if shown:
        title = "Held-out prompts" if summary.held_out else "Training prompts (no eval_dataset was given)"
        parts.append(_Completions(title, after, color, summary.before[:shown], summary.after[:shown]))
    figures = Table.grid(padding=(0, 3))
    figures.add_row("", Text("before", style="dim"), Text("after", style="dim"))
    others = [*other_metrics(summary.metrics_after), "eval/completions/mean_length", "eval/completions/loss"]
    for key, value in summary.metrics_after.items():
        if key in ("eval/reward", *others):
            name = key.removeprefix("eval/")
            before = summary.metrics_before.get(key)
            figures.add_row(LABELS.get(name, name), number(before), Text(number(value), style=f"bold {color}"))
    if shown:
        step, which = summary.metrics_after.get("step"), f" ({standing})" if standing else ""
        parts += [
            Text(f"The center, mean over {len(summary.after)} prompts, before and after iteration {step}{which}:"),
            figures,
        ]
    of_fleet = [f"Replicas: {replicas(fleet)}"] if fleet else []
    parts.append(Text("\n" + "\n".join([*of_fleet, f"Output: {summary.output_dir}"])))
    if summary.next_commands:
        parts += [Text("Next:"), *map(_Command, summary.next_commands)]
    return Group(*parts)


@dataclass(frozen=True)
class _Completions:
    """The same prompts before and after: in columns, where there is room for them, else one under the other."""

    title: str
    after: str
    color: str
    rows_before: Sequence[Mapping[str, Any]]
    rows_after: Sequence[Mapping[str, Any]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        rows = zip(self.rows_before, self.rows_after, strict=True)
        if options.max_width >= _WIDE:
            table = Table(title=self.title, title_justify="left", title_style="bold", expand=True, show_lines=True)
            table.add_column("prompt", ratio=3)
            table.add_column("before", ratio=4)
            table.add_column("reward", justify="right", no_wrap=True)
            table.add_column(self.after, ratio=3, style=self.color)
            table.add_column("reward", justify="right", no_wrap=True)
            for old, new in rows:
                table.add_row(
                    Text(prompt_text(old["prompt"], 90)),
                    Text(completion_text(old, 110), style="dim"),
                    number(old["reward"]),
                    Text(completion_text(new, 110)),
                    number(new["reward"]),
                )
            yield table
            return
        yield Text(f"{self.title}, with the reward of each completion\n", style="bold")
        for old, new in rows:
            pair = Table.grid(padding=(0, 2))
            pair.add_column(justify="right", no_wrap=True)
            pair.add_column(no_wrap=True)
            pair.add_column(ratio=1)
            pair.add_row(number(old["reward"]), "before", Text(completion_text(old, 110)), style="dim")
            pair.add_row(number(new["reward"]), self.after, Text(completion_text(new, 110)), style=self.color)
            yield Text(prompt_text(old["prompt"], 90))
            yield Padding(pair, (0, 0, 1, 2))


@dataclass(frozen=True)
class _Command:
    """A command that can be copied: where it is longer than a line, the shell's mark stands at the line's end."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        lines = [""]
        for word in re.findall(r'(?:"[^"]*"|\S)+', self.text):
            if lines[-1] and not options.no_wrap and len(f"  {lines[-1]} {word} \\") > options.max_width:
                lines[-1:] = [f"{lines[-1]} \\", "   "]
            lines[-1] += f" {word}"
        yield Text("\n".join(f" {line}" for line in lines), style="bold")


def other_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the center besides the reward."""
    hidden = ("eval/reward", "eval/rewards/", "eval/completions/", "eval/kl_ci95", "eval/hacked", "eval/collapsed")
    return {k: v for k, v in metrics.items() if k.startswith("eval/") and not k.startswith(hidden)}


_FLEET = ("replicas", "lost", "utilization", "slowest", "fastest", "bytes_sent")


def replicas(lines: Sequence[Mapping[str, float]]) -> str:
    """Of some iterations: `2 to 3, 1 lost, 92 % busy, 105 to 240 tokens/s each, at most 3.1 kB sent to one`."""
    of = {name: [line[f"fleet/{name}"] for line in lines] for name in _FLEET}
    fewest, most = min(of["replicas"]), max(of["replicas"])
    parts = [f"{most:.0f}" if fewest == most else f"{fewest:.0f} to {most:.0f}"]
    parts += [f"{lost:.0f} lost"] if (lost := sum(of["lost"])) else []
    parts += [f"{sum(of['utilization']) / len(lines):.0%} busy"]
    if fastest := max(of["fastest"]):  # 0: no speed is known yet
        parts += [f"{min(filter(None, of['slowest'])):.0f} to {fastest:.0f} tokens/s each"]
    return ", ".join([*parts, f"at most {max(of['bytes_sent']) / 1000:.1f} kB sent to one in an iteration"])
