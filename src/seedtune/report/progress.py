"""What a run prints: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rich
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel as Box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..utils.streams import tolerant
from .format import completion_text, duration, number, plus_minus, prompt_text, setting, sparkline
from .summary import Summary, closing, other_metrics, replicas


@dataclass
class Progress:
    """Counts only; the two displays below draw. Pass `Progress()` itself to print nothing."""

    max_steps: int = 0
    step: int = 0
    done: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    center: list[tuple[int, float]] = field(default_factory=list)
    sample: Mapping[str, Any] | None = None
    fleet: list[Mapping[str, float]] = field(default_factory=list)
    best: int | None = None
    _steps: dict[str, set[float]] = field(default_factory=dict)
    _started: float = 0.0
    _first: int = 0

    def stage(self, text: str) -> None:
        """What goes on before the run starts, as that takes a while."""

    def begin(self, facts: Sequence[tuple[str, str]], first: int, max_steps: int) -> None:
        """The run starts after iteration `first`."""
        self._count(first, max_steps)

    def _count(self, first: int, max_steps: int) -> None:
        self.max_steps, self.step, self._first, self._started = max_steps, first, first, time.monotonic()

    def rows(self, done: int, total: int, new_tokens: int) -> None:
        """`done` of `total` rows of the iteration (or the evaluation) have been decoded, `new_tokens` since before."""
        self.done, self.total = done, total

    def iteration(self, step: int, metrics: Mapping[str, float], sample: Mapping[str, Any]) -> None:
        """An iteration has ended, with its metrics; `sample` is a row of `completions/`, to show."""
        self.step, self.metrics, self.sample, self.done = step, metrics, sample, 0
        self.fleet += [metrics] if "fleet/replicas" in metrics else []
        for name in _STEP:
            self._steps.setdefault(name, set()).update([metrics[name]] if name in metrics else [])

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The center was evaluated after iteration `step`."""
        self.center.append((step, metrics["eval/reward"]))
        self.best = int(metrics["es/best_step"]) if "es/best_step" in metrics else None
        self.done = 0
        if self.step == self._first:  # the first evaluation is not part of an iteration
            self._started = time.monotonic()

    def finish(self, summary: Summary) -> None:
        """The run is over."""

    def stop(self) -> None:
        """End the display, also after an error."""

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last iteration, as fast as those so far; None before the first has ended."""
        finished = self.step - self._first
        if not finished:
            return None
        return (time.monotonic() - self._started) / finished * (self.max_steps - self.step)

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second of decoding, in the last iteration."""
        return self.metrics.get("tokens_per_second", 0.0)

    @property
    def signal(self) -> list[str]:
        """How reliable rewards are, how far the last step moved the center, and what a step is made of, if it changes.
        Empty where nothing of it is known.
        """
        found, m = [], self.metrics
        if "es/reliability" in m:
            found.append(f"reliability {plus_minus(m['es/reliability'], m.get('es/reliability_error', 0.0))}")
        if (kl := m.get("es/step_kl_measured", m.get("es/step_kl"))) is not None:
            found.append(f"step KL {kl:.2g}")
        return found + [f"{label} {setting(m[name])}" for name, label in _STEP.items()
                        if name in m and len(self._steps[name]) > 1]  # fmt: skip

    @property
    def standing(self) -> str:
        """Which center would be handed back now, when there is a choice."""
        if self.best is None or len(self.center) < 2:
            return ""
        if self.best == self.center[-1][0]:
            return "the best so far"
        reward = next((f", {number(value)}" for step, value in self.center if step == self.best), "")
        return f"kept so far: {f'after {self.best}{reward}' if self.best else 'the base'}"


#: What decides the size of a step.
_STEP = {"es/sigma": "sigma", "learning_rate": "lr"}


class Lines(Progress):
    """One line per iteration, for logs and pipes."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = tolerant(console or rich.get_console())

    def stage(self, text: str) -> None:
        self._print(Text(text))

    def begin(self, facts: Sequence[tuple[str, str]], first: int, max_steps: int) -> None:
        super().begin(facts, first, max_steps)
        for label, value in facts:
            self._print(Text(f"{label}: {value}"))

    def iteration(self, step: int, metrics: Mapping[str, float], sample: Mapping[str, Any]) -> None:
        super().iteration(step, metrics, sample)
        left, signal = duration(self.seconds_left), "".join(f"{part}  " for part in self.signal)
        self._print(
            Text(
                f"iteration {step}/{self.max_steps}  members {number(metrics['reward'])} ± "
                f"{number(metrics['reward_std'])}  length {metrics['completions/mean_length']:.0f} tokens  "
                f"{self.tokens_per_second:.0f} tokens/s  {signal}left {left}"
            )
        )

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        super().evaluated(step, metrics)
        others = "  ".join(f"{k.removeprefix('eval/')} {number(v)}" for k, v in other_metrics(metrics).items())
        best = f"  ({self.standing})" if self.standing else ""
        self._print(Text(f"center after {step}: reward {number(metrics['eval/reward'])}{best}  {others}".rstrip()))

    def finish(self, summary: Summary) -> None:
        self._print(closing(summary, self.fleet))

    def _print(self, what: RenderableType) -> None:
        self.console.print(what, soft_wrap=True)


class Panel(Progress):
    """A panel that redraws itself."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = tolerant(console or rich.get_console())
        self._live: Live | None = None
        self._over = False
        self._other_metrics: Mapping[str, float] = {}

    def stage(self, text: str) -> None:
        self.console.print(Text(text))

    def begin(self, facts: Sequence[tuple[str, str]], first: int, max_steps: int) -> None:
        super().begin(facts, first, max_steps)
        table = Table.grid(padding=(0, 2))
        for label, value in facts:
            table.add_row(Text(label, style="dim"), Text(value))
        self.console.print(table)
        self._live = Live(self._draw(), console=self.console, refresh_per_second=4, get_renderable=self._draw)
        self._live.start()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        super().evaluated(step, metrics)
        self._other_metrics = other_metrics(metrics)

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
            grid.add_row(
                "members",
                Text.assemble((spread, "bold"), ("  reward of the model with noise, mean ± standard deviation", "dim")),
            )
        if self.center:
            values = [v for _, v in self.center]
            grid.add_row(
                "center",
                Text.assemble(
                    (number(values[-1]), "bold green"),
                    f"  {sparkline(values)}",
                    (f"  was {number(values[0])}" if len(values) > 1 else "  reward of the model itself", "dim"),
                    (f"  {self.standing}", "green" if self.best == self.center[-1][0] else "dim"),
                ),
            )
        if self._other_metrics:
            grid.add_row(
                "", Text("  ".join(f"{k.removeprefix('eval/')} {number(v)}" for k, v in self._other_metrics.items()))
            )
        if self.metrics:
            if self.signal:
                grid.add_row("signal", Columns(self.signal, padding=(0, 2)))
            length = self.metrics["completions/mean_length"]
            grid.add_row("speed", f"{self.tokens_per_second:.0f} tokens/s, {length:.0f} tokens per completion")
        if "fleet/replicas" in self.metrics:
            grid.add_row("replicas", replicas([self.metrics]))
        if self.sample:
            prompt = Text(prompt_text(self.sample["prompt"], 70), style="dim", overflow="ellipsis", no_wrap=True)
            completion = Text(completion_text(self.sample, 240), style="cyan")
            grid.add_row("a member", Group(prompt, completion))
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
    """A panel on a terminal, one that is redrawn in place in a notebook, plain lines elsewhere."""
    console = console or rich.get_console()
    if console.is_jupyter:
        from .notebook import Notebook

        return Notebook()
    return Panel(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)
