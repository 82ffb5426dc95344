"""Progress in a notebook: one output that is redrawn, a panel and the curve of the reward, not a line per iteration."""

from __future__ import annotations

import html
import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import HTML, display
from rich.console import Console, RenderableType

from . import figures
from .progress import Panel
from .summary import Summary, closing

#: Columns of the text, and seconds between two drawings of the panel while an iteration goes on.
WIDTH, EVERY = 100, 1.0


class Notebook(Panel):
    """A panel that is redrawn in place, at most once per `EVERY` seconds, with a figure that grows by iterations.

    Text takes the colors of the notebook, light or dark.
    """

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), width=WIDTH, force_jupyter=False))
        self._shown: Any = None
        self._drawn = 0.0
        self._stage = ""
        self._members: list[dict[str, float]] = []
        self._figure = ""
        self._facts: Sequence[tuple[str, str]] = ()

    def stage(self, text: str) -> None:
        self._stage = text
        self._show()

    def begin(self, facts: Sequence[tuple[str, str]], first: int, max_steps: int) -> None:
        self._count(first, max_steps)
        self._facts, self._stage = facts, ""
        self._show()

    def rows(self, done: int, total: int, new_tokens: int) -> None:
        super().rows(done, total, new_tokens)
        if time.monotonic() - self._drawn > EVERY:
            self._show()

    def iteration(self, step: int, metrics: Mapping[str, float], sample: Mapping[str, Any]) -> None:
        super().iteration(step, metrics, sample)
        self._members.append({"step": step, "mean": metrics["reward"], "std": metrics["reward_std"]})
        self._curve()
        self._show()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        super().evaluated(step, metrics)
        self._curve()
        self._show()

    def finish(self, summary: Summary) -> None:
        self._over = True
        self._show(closing(summary, self.fleet))

    def stop(self) -> None:
        self._over = True

    def _curve(self) -> None:
        if len(self._members) + len(self.center) < 2:
            return
        center = [{"step": step, "reward": reward} for step, reward in self.center]
        self._figure = figures.svg(figures.by_iteration(self._members, center))

    def _show(self, last: RenderableType | None = None) -> None:
        """Redraw the output; the first time, make it."""
        self._drawn = time.monotonic()
        parts = [self._stage, "\n".join(f"{name}: {value}" for name, value in self._facts)]
        parts += [_plain(self._draw())] if self._facts else []
        parts += [_plain(last)] if last is not None else []
        text = html.escape("\n".join(part for part in parts if part))
        shown = HTML(f"{self._figure}<pre style='line-height: 1.25'>{text}</pre>")
        if self._shown is None:
            self._shown = display(shown, display_id=True)
        else:
            self._shown.update(shown)


def _plain(what: RenderableType) -> str:
    text = io.StringIO()
    Console(file=text, width=WIDTH, force_jupyter=False).print(what)
    return text.getvalue().rstrip()
