"""The pictures of the README and the site.

python docs/pictures/draw.py                    # how.svg, and reward-kl.svg of benchmarks/comparison.md
python docs/pictures/draw.py --run runs/demo    # demo.svg too: how the panel of that run ended
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.terminal_theme import MONOKAI

from seedtune.report import figures
from seedtune.report.history import History, read
from seedtune.report.progress import Panel
from seedtune.report.summary import Summary, closing

FOLDER = Path(__file__).parent
COMPARISON = FOLDER.parents[1] / "benchmarks" / "comparison.md"

#: Colors of drawings, on light and on dark pages.
_STYLE = """<style>
  text { font: 15px system-ui, sans-serif; fill: #1d262e; text-anchor: middle; }
  .soft { font-size: 13px; fill: #5b6873; }
  .math { font: italic 16px Georgia, serif; }
  rect { fill: #eef6f4; stroke: #0b7d6e; stroke-width: 1.5; rx: 8px; }
  .member { fill: #f6f8f9; stroke: #7a8793; }
  .journal { fill: #fdf3ec; stroke: #b8431f; }
  path { fill: none; stroke: #5b6873; stroke-width: 1.5; marker-end: url(#head); }
  #head path { fill: #5b6873; stroke: none; marker-end: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e3e8ec; } .soft { fill: #98a4ae; }
    rect { fill: #12302c; stroke: #3cc4b0; } .member { fill: #1c2328; stroke: #7a8793; }
    .journal { fill: #33211a; stroke: #f08a5d; } path { stroke: #98a4ae; } #head path { fill: #98a4ae; }
  }
</style>
<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 L10 5 L0 10 z"/></marker></defs>"""


def how() -> str:
    """Seed, members, rewards, update, journal, as SVG."""
    parts = [
        _box(20, 95, 150, 80, "seed", "noise is a function", "of it: ε₁ ε₂ ε₃ …"),
        *(
            _box(250, 20 + 80 * n, 160, 60, f"member {n + 1}", math=f"θ ± σ ε{i}", kind="member")
            for n, i in enumerate("₁₂₃")
        ),
        _box(490, 95, 150, 80, "rewards", "a number for each", "completion"),
        _box(720, 95, 190, 80, "update", "of the center:", math="θ ← θ + α Σ c ε"),
        _box(490, 300, 420, 70, "journal", "rewards, coefficients c, a digest of θ: kilobytes", kind="journal"),
        _box(20, 300, 390, 70, "the same bits again", "resume · replay · a patch to send", kind="member"),
        *(_arrow(f"M170 135 C210 135 210 {50 + 80 * n} 248 {50 + 80 * n}") for n in range(3)),
        *(_arrow(f"M410 {50 + 80 * n} C450 {50 + 80 * n} 450 135 488 135") for n in range(3)),
        _arrow("M640 135 L718 135"),
        _arrow("M565 175 L565 298"),
        _arrow("M815 175 L815 298"),
        _arrow("M488 335 L412 335"),
        _arrow("M860 95 C860 -20 330 -20 330 18"),
        '<text class="soft" x="570" y="30">the next iteration perturbs the new center θ</text>',
    ]
    title = "<title>How it works: a seed gives noise, members are the center plus noise, completions get rewards, the "
    title += "update moves the center, and the journal holds enough to repeat it all</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -10 930 390">{title}{_STYLE}{"".join(parts)}</svg>\n'


def _box(x: int, y: int, width: int, height: int, name: str, *lines: str, math: str = "", kind: str = "") -> str:
    middle, count = x + width / 2, len(lines) + bool(math)
    top = y + height / 2 + 5 - 9 * count
    texts = [f'<text x="{middle}" y="{top}" font-weight="600">{name}</text>']
    texts += [f'<text class="soft" x="{middle}" y="{top + 20 * n}">{text}</text>' for n, text in enumerate(lines, 1)]
    texts += [f'<text class="math" x="{middle}" y="{top + 20 * count}">{math}</text>'] if math else []
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"/>{"".join(texts)}'


def _arrow(path: str) -> str:
    return f'<path d="{path}"/>'


def reward_kl() -> str:
    """Reward against KL of the comparison in benchmarks/comparison.md, as SVG."""
    return figures.svg({**figures.plane(points(COMPARISON.read_text()), by="method"), "height": 260}, width=600)


def points(text: str) -> list[dict[str, Any]]:
    """The rows of the first table: method, reward (minus the miss), KL."""
    found = []
    for line in text.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 4 and re.fullmatch(r"[\d.]+", cells[1]):
            method = re.sub(r" \(.*", "", cells[0])
            found.append({"method": method, "reward": -float(cells[1]), "kl": float(cells[3]), "completions": "",
                          "label": method})  # fmt: skip
    return found


def demo(run: Path, width: int = 110) -> str:
    """How the panel of a run ended, with completions before and after, as SVG."""
    history = read(run)
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Group(_panel(history, console)._draw(), closing(_summary(history), most=4)))
    return console.export_svg(title="seedtune demo", theme=MONOKAI)


def _panel(history: History, console: Console) -> Panel:
    panel = Panel(console)
    panel._count(0, int(history.setting("max_steps")))
    evaluations = {line["step"]: line for line in history.evaluations}
    panel.evaluated(0, evaluations[0])
    for line in history.iterations:
        panel.iteration(line["step"], line, {"prompt": "", "completion": ""})
        if line["step"] in evaluations:
            panel.evaluated(line["step"], evaluations[line["step"]])
    panel.sample, panel._over, panel._first = None, True, panel.step  # no time is left
    return panel


def _summary(history: History) -> Summary:
    first, last = history.evaluations[0], history.compared
    rule, step = (yaml.safe_load(history.settings).get("stop_at") or [""])[0], history.iterations[-1]["step"]
    by = f" by the rule `{rule}`: it is {last['eval/reward']:.3g}" if rule else ""
    best = f"The best center is the one after iteration {last['step']} (reward {last['eval/reward']:.4g})."
    why = f"Ended after iteration {step}{by}. {best}"
    name = "seedtune-demo"
    then = [
        f'seedtune generate {name} "What is the capital of Peru?"',
        f"seedtune export {name} --patch brief.seedtune",
    ]
    end = last["step"]
    return Summary(why, history.before, history.after, first, last, True, name, None, then, center=end, best=end)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="the folder of a run of the demo")
    run = parser.parse_args().run
    (FOLDER / "how.svg").write_text(how())
    (FOLDER / "reward-kl.svg").write_text(reward_kl())
    if run:
        (FOLDER / "demo.svg").write_text(demo(run))
