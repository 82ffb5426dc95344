"""What a terminal shows while a run goes on: a live panel, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel as Box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .words import answer_text, duration, number, prompt_text, sparkline


@dataclass(frozen=True)
class Summary:
    """How a run ended: what `finish` shows. Rows are those of `completions/eval-*.jsonl`."""

    why: str
    before: Sequence[Mapping[str, Any]]
    after: Sequence[Mapping[str, Any]]
    metrics_before: Mapping[str, float]
    metrics_after: Mapping[str, float]
    held_out: bool
    output_dir: str
    checkpoint: str | None
    next_commands: Sequence[str]


@dataclass
class Progress:
    """Counts; the two displays below draw. A Python user may pass `Progress()` itself for silence."""

    max_steps: int = 0
    step: int = 0
    done: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    centre: list[tuple[int, float]] = field(default_factory=list)
    sample: Mapping[str, Any] | None = None
    fleet: list[Mapping[str, float]] = field(default_factory=list)
    _started: float = 0.0
    _first: int = 0

    def begin(self, facts: Sequence[tuple[str, str]], first: int, max_steps: int) -> None:
        """The run starts after iteration `first`."""
        self.max_steps, self.step, self._first, self._started = max_steps, first, first, time.monotonic()

    def note(self, text: str) -> None:
        """One thing that the user should know."""

    def rows(self, done: int, total: int, new_tokens: int) -> None:
        """`done` of `total` rows of the iteration (or the evaluation) have been decoded, `new_tokens` since before."""
        self.done, self.total = done, total

    def iteration(self, step: int, metrics: Mapping[str, float], sample: Mapping[str, Any]) -> None:
        self.step, self.metrics, self.sample, self.done = step, metrics, sample, 0
        self.fleet += [metrics] if "fleet/replicas" in metrics else []

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self.centre.append((step, metrics["eval/reward"]))
        self.done = 0
        if self.step == self._first:  # what it took to begin says nothing of what is to come
            self._started = time.monotonic()

    def finish(self, summary: Summary) -> None:
        """The run is over."""

    def stop(self) -> None:
        """Give the terminal back, whatever happened."""

    @property
    def seconds_left(self) -> float | None:
        finished = self.step - self._first
        if not finished:
            return None
        return (time.monotonic() - self._started) / finished * (self.max_steps - self.step)

    @property
    def tokens_per_second(self) -> float:
        return self.metrics.get("tokens_per_second", 0.0)


class Lines(Progress):
    """One line an iteration, for logs and pipes."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console(highlight=False, soft_wrap=True)

    def begin(self, facts: Sequence[tuple[str, str]], first: int, max_steps: int) -> None:
        super().begin(facts, first, max_steps)
        for label, value in facts:
            self.console.print(Text(f"{label}: {value}"))

    def note(self, text: str) -> None:
        self.console.print(Text(text))

    def iteration(self, step: int, metrics: Mapping[str, float], sample: Mapping[str, Any]) -> None:
        super().iteration(step, metrics, sample)
        left = duration(self.seconds_left)
        self.console.print(
            Text(
                f"iteration {step}/{self.max_steps}  members {number(metrics['reward'])} ± "
                f"{number(metrics['reward_std'])}  length {metrics['completions/mean_length']:.0f} tokens  "
                f"{self.tokens_per_second:.0f} tokens/s  left {left}"
            )
        )

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        super().evaluated(step, metrics)
        others = "  ".join(f"{k.removeprefix('eval/')} {number(v)}" for k, v in _truths(metrics).items())
        self.console.print(Text(f"centre after {step}: reward {number(metrics['eval/reward'])}  {others}".rstrip()))

    def finish(self, summary: Summary) -> None:
        self.console.print(closing(summary, self.fleet))


class Panel(Progress):
    """A panel that redraws itself."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._live: Live | None = None
        self._over = False
        self._truths: Mapping[str, float] = {}

    def begin(self, facts: Sequence[tuple[str, str]], first: int, max_steps: int) -> None:
        super().begin(facts, first, max_steps)
        table = Table.grid(padding=(0, 2))
        for label, value in facts:
            table.add_row(Text(label, style="dim"), Text(value))
        self.console.print(table)
        self._live = Live(self._draw(), console=self.console, refresh_per_second=4, get_renderable=self._draw)
        self._live.start()

    def note(self, text: str) -> None:
        self.console.print(Text(text, style="yellow"))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        super().evaluated(step, metrics)
        self._truths = _truths(metrics)

    def stop(self) -> None:
        self._over = True
        if self._live is not None:
            self._live.stop()
            self._live = None

    def finish(self, summary: Summary) -> None:
        self.stop()
        self.console.print(closing(summary, self.fleet))

    def _draw(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(style="dim", no_wrap=True, width=10)
        grid.add_column(ratio=1)
        grid.add_row("iteration", self._bar())
        if self.metrics:
            spread = f"{number(self.metrics['reward'])} ± {number(self.metrics['reward_std'])}"
            grid.add_row("members", Text.assemble((spread, "bold"), ("  reward, mean ± deviation of members", "dim")))
        if self.centre:
            values = [v for _, v in self.centre]
            grid.add_row(
                "centre",
                Text.assemble(
                    (number(values[-1]), "bold green"),
                    f"  {sparkline(values)}",
                    (f"  was {number(values[0])}" if len(values) > 1 else "", "dim"),
                ),
            )
        if self._truths:
            grid.add_row("", Text("  ".join(f"{k.removeprefix('eval/')} {number(v)}" for k, v in self._truths.items())))
        if self.metrics:
            length = self.metrics["completions/mean_length"]
            grid.add_row("speed", f"{self.tokens_per_second:.0f} tokens/s, {length:.0f} tokens an answer")
        if "fleet/replicas" in self.metrics:
            grid.add_row("replicas", _replicas([self.metrics]))
        if self.sample:
            asked = Text(prompt_text(self.sample["prompt"], 70), style="dim", overflow="ellipsis", no_wrap=True)
            said = Text(answer_text(self.sample["completion"], 240), style="cyan")
            grid.add_row("a member", Group(asked, said))
        return Box(grid, title="[bold]seedtune[/bold]", title_align="left", border_style="blue", padding=(0, 1))

    def _bar(self) -> RenderableType:
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, justify="right")
        part = self.done / self.total if self.total and self.done else 0.0
        now = self.step if self._over else min(self.step + 1, self.max_steps)
        within = f" · row {self.done}/{self.total}" if self.done else ""
        left = f"{duration(self.seconds_left)} left" if self._first < self.step < self.max_steps else ""
        line.add_row(
            Text(f"{now}/{self.max_steps}{within}"),
            ProgressBar(total=max(self.max_steps, 1), completed=self.step + part),
            Text(left, style="dim"),
        )
        return line


def display(console: Console | None = None) -> Progress:
    """A panel on a terminal, plain lines elsewhere."""
    console = console or Console()
    return Panel(console) if console.is_terminal and not console.is_dumb_terminal else Lines()


def _truths(metrics: Mapping[str, float]) -> dict[str, float]:
    """What is measured of the centre besides the reward."""
    hidden = ("eval/reward", "eval/rewards/", "eval/completions/", "eval/kl_ci95", "eval/hacked")
    return {k: v for k, v in metrics.items() if k.startswith("eval/") and not k.startswith(hidden)}


_FLEET = ("replicas", "lost", "utilisation", "slowest", "fastest", "bytes_sent")
_LABELS = {
    "completions/mean_length": "tokens an answer",
    "kl": "KL from the base, nats a token",
    "distance": "distance of the weights from the base",
    "perplexity": "perplexity of a held-out text",
}


def closing(summary: Summary, fleet: Sequence[Mapping[str, float]] = ()) -> RenderableType:
    """The table of answers before and after, the rewards, what replicas did, and what to do next."""
    shown = min(len(summary.after), len(summary.before), 8)
    parts: list[RenderableType] = [Text(f"\n{summary.why}", style="bold")]
    if shown:
        title = "Held-out prompts" if summary.held_out else "Training prompts (no eval_dataset was given)"
        table = Table(title=title, title_justify="left", title_style="bold", expand=True, show_lines=True)
        table.add_column("prompt", ratio=3)
        table.add_column("before", ratio=4)
        table.add_column("reward", justify="right", no_wrap=True)
        table.add_column("after", ratio=3, style="green")
        table.add_column("reward", justify="right", no_wrap=True)
        for old, new in zip(summary.before[:shown], summary.after[:shown], strict=True):
            table.add_row(
                Text(prompt_text(old["prompt"], 90)),
                Text(answer_text(old["completion"], 110), style="dim"),
                number(old["reward"]),
                Text(answer_text(new["completion"], 110)),
                number(new["reward"]),
            )
        parts.append(table)
    figures = Table.grid(padding=(0, 3))
    figures.add_row("", Text("before", style="dim"), Text("after", style="dim"))
    for key, after in summary.metrics_after.items():
        if key == "eval/reward" or key in _truths(summary.metrics_after) or key == "eval/completions/mean_length":
            name = key.removeprefix("eval/")
            before = summary.metrics_before.get(key)
            figures.add_row(_LABELS.get(name, name), number(before), Text(number(after), style="bold green"))
    if shown:
        step = summary.metrics_after.get("step")
        parts += [
            Text(f"The centre, mean over {len(summary.after)} prompts, before and after iteration {step}:"),
            figures,
        ]
    replicas = [f"Replicas: {_replicas(fleet)}"] if fleet else []
    parts.append(Text("\n" + "\n".join([*replicas, f"Output: {summary.output_dir}"])))
    if summary.next_commands:
        parts.append(Text("Next:"))
        parts += [Text(f"  {command}", style="bold") for command in summary.next_commands]
    return Group(*parts)


def _replicas(lines: Sequence[Mapping[str, float]]) -> str:
    """Of some iterations: `2 to 3, 1 lost, 92 % busy, 105 to 240 tokens/s each, at most 3.1 kB sent to one`."""
    of = {name: [line[f"fleet/{name}"] for line in lines] for name in _FLEET}
    fewest, most = min(of["replicas"]), max(of["replicas"])
    parts = [f"{most:.0f}" if fewest == most else f"{fewest:.0f} to {most:.0f}"]
    parts += [f"{lost:.0f} lost"] if (lost := sum(of["lost"])) else []
    parts += [f"{sum(of['utilisation']) / len(lines):.0%} busy"]
    if fastest := max(of["fastest"]):  # 0: nobody's speed is known
        parts += [f"{min(filter(None, of['slowest'])):.0f} to {fastest:.0f} tokens/s each"]
    return ", ".join([*parts, f"at most {max(of['bytes_sent']) / 1000:.1f} kB sent to one in an iteration"])
