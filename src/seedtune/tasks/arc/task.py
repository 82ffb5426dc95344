"""ARC-AGI: from pairs of grids the model writes a Python function `transform(grid)`, which is run in the sandbox on the
test grids (Qiu et al., arXiv 2509.24372: grids are shown as digits).

    task: arc
    task_args: {folder: arc/training, test_folder: arc/evaluation}

Without a folder it is eight tasks of ours, to try it with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...sandbox import Limits
from ..base import Row, Rows, Task, text_of, user
from ..code.unit_tests import at_once, fenced, in_sandbox
from ..code.verdict import code_of, returned
from ..code.verdict import parsed as parsed_code
from .files import Grid, is_grid, read_folder, shown

_OURS = Path(__file__).parent
_LIMITS = Limits(seconds=5.0)


@in_sandbox
def arc_solved(
    completions: list[Any], test_inputs: list[list[Grid]], test_outputs: list[list[Grid]], **_: Any
) -> list[float]:
    """The share of the test grids that `transform` gets right, every cell of them."""
    return _scores(completions, test_inputs, test_outputs, lambda made, right: float(made == right))


@in_sandbox
def arc_cells(
    completions: list[Any], test_inputs: list[list[Grid]], test_outputs: list[list[Grid]], **_: Any
) -> list[float]:
    """The share of cells that are right, the mean over test grids; 0 for a grid of another size."""
    return _scores(completions, test_inputs, test_outputs, _right_cells)


def _scores(
    completions: list[Any],
    inputs: list[list[Grid]],
    outputs: list[list[Grid]],
    score: Callable[[Grid, Grid], float],
) -> list[float]:
    codes = [code_of(text_of(completion)) for completion in completions]
    made = at_once(lambda pair: _transformed(*pair), list(zip(codes, inputs, strict=True)))
    return [
        sum(score(m, right) for m, right in zip(ms, rights, strict=True)) / len(rights)
        for ms, rights in zip(made, outputs, strict=True)
    ]


def _transformed(code: str, grids: Sequence[Grid]) -> list[Any]:
    """What the code makes of each grid; it never sees an output. Tuples in place of lists are as good."""
    if parsed_code(code) is None:  # as much of what a model writes is
        return [None] * len(grids)
    found = returned(code, "transform", [[grid] for grid in grids], _LIMITS)
    return [_lists(value) for value in found]


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _right_cells(made: Any, right: Grid) -> float:
    if not is_grid(made) or (len(made), len(made[0])) != (len(right), len(right[0])):
        return 0.0
    cells = [float(a == b) for rows in zip(made, right, strict=True) for a, b in zip(*rows, strict=True)]
    return sum(cells) / len(cells)


def configure(folder: str | None = None, test_folder: str | None = None, dense: bool = False) -> Task:
    """Tasks of `folder`, and held-out ones of `test_folder`; without the latter its subfolders `training` and
    `evaluation` where it has them, or else every other task of it. `dense`: the reward is the share of right cells
    (`arc_cells`), and solved grids are a gold metric. Raises ConfigError.
    """
    for name, value in (("folder", folder), ("test_folder", test_folder)):
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigError(f"task_args: {name} is the name of a folder; got {value!r}.")
    if test_folder is not None and folder is None:
        raise ConfigError("task_args: test_folder goes with folder: say both.")
    if type(dense) is not bool:
        raise ConfigError(f"task_args: dense is true or false; got {dense!r}.")
    return Task(
        name="arc",
        load=partial(_load, folder, test_folder),
        rewards=(arc_cells if dense else arc_solved,),
        gold_metrics=(arc_solved,) if dense else (arc_cells,),
        reference=lambda row: fenced(row["solution"]),
        full_marks=1.0,
        hacks=(
            lambda row: "",
            lambda row: fenced("import sys\nsys.exit(0)\n"),
            lambda row: fenced(f"print({row['test_outputs']!r})\n"),
            lambda row: fenced("def transform(grid): return [[]]\n"),
        ),
        defaults={"max_completion_length": 512},
        configure=configure,
    )


def _load(folder: str | None, test_folder: str | None) -> tuple[Rows, Rows]:
    if folder is not None and test_folder is None and all(Path(folder, n).is_dir() for n in ("training", "evaluation")):
        folder, test_folder = str(Path(folder, "training")), str(Path(folder, "evaluation"))
    rows = [_row(name, task) for name, task in read_folder(folder or _OURS).items()]
    if test_folder is None:
        return rows[::2], rows[1::2]
    return rows, [_row(name, task) for name, task in read_folder(test_folder).items()]


def _row(name: str, task: dict[str, Any]) -> Row:
    pairs = "\n\n".join(f"Input:\n{shown(p['input'])}\nOutput:\n{shown(p['output'])}" for p in task["train"])
    inputs = [pair["input"] for pair in task["test"]]
    asked = (
        "Grids are shown as lines of digits, one digit per cell. Every input is changed into its output by the same "
        f"rule:\n\n{pairs}\n\nThe rule will be tried on:\n\n"
        + "\n\n".join(f"Input:\n{shown(g)}" for g in inputs)
        + "\n\n"
        "Write the rule as a Python function `transform(grid)`: it gets a grid as a list of rows, which are lists of "
        "integers, and returns the new grid in the same form. Answer with the function in a fenced block of code."
    )
    outputs = [pair["output"] for pair in task["test"]]
    solution = str(task.get("solution") or "")
    return {"prompt": user(asked), "task": name, "test_inputs": inputs, "test_outputs": outputs, "solution": solution}


TASK = configure()
