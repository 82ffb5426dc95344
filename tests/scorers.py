"""Every built-in scorer of text, as a function of a completion: whether it passes, by full marks or a gold metric."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from seedtune.rewards.builtin import FUNCTIONS
from seedtune.rewards.equivalence import plug_of
from seedtune.tasks import countdown_ladder
from seedtune.tasks.registry import TASKS, builtin

Passes = Callable[[str], bool]

#: Functions that pass what is not right: they are made to be hacked, or say nothing of right and wrong.
_SAY_NOTHING = {
    "boxed",
    "answered",
    "keywords",
    "summary",
    "parses",
    "right_numbers",
    "closeness",
    "own_numbers",
    "conciseness",
}
#: Tasks whose completions are programs, which are run, in the sandbox: tests/sandbox/ has the attacks.
_RUN = {"code", "code_hacks", "arc"}


def _of_task(function: Callable[..., Any], row: Any, full: float) -> Passes:
    columns = {key: [value] for key, value in row.items() if key != "prompt"}

    def passes(text: str) -> bool:
        found = function(prompts=[row["prompt"]], completions=[text], completion_ids=[[]], **columns)[0]
        return function.__name__ not in _SAY_NOTHING and found >= full

    return passes


def of_tasks() -> dict[str, Passes]:
    """Of tasks that need no `task_args`, and do not run code (tests/tasks/test_code.py attacks those)."""
    found = {}
    tasks = [builtin(name) for name, task in TASKS.items() if not task.required_args and name not in _RUN]
    for task in [*tasks, countdown_ladder.configure(rungs=(5,), problems=5, test_problems=5)]:
        for function in (*task.rewards, *task.gold_metrics):
            if getattr(function, "runs_code", False):
                continue
            full = task.full_marks if function in task.rewards else 1.0
            found[f"{task.name}: {function.__name__}"] = _of_task(function, task.test[0], full)
    return found


def of_gym(names: list[str]) -> dict[str, Passes]:
    """Of datasets of reasoning-gym, the first item of each whose answer is not 0, which hostile outputs may say."""
    from seedtune.tasks import reasoning_gym

    found = {}
    for name in names:
        task = builtin("reasoning_gym").with_args({"name": name, "size": 6, "test_size": 1})
        row = next(row for row in task.train if str(json.loads(row["entry"])["answer"]).strip("-0., "))
        found[f"reasoning_gym: {name}"] = _of_task(reasoning_gym.reasoning_gym_solved, row, 1.0)
    return found


def of_answers() -> dict[str, Passes]:
    """Of equivalences, and of rewards that compare answers or read a confidence."""
    exact, both = plug_of("exact"), ["exact", *(["math"] if find_spec("math_verify") else [])]
    found: dict[str, Passes] = {"equivalence: exact": lambda text: exact.same(text, "Zanzibar", "")}
    if "math" in both:
        plug = plug_of("math")
        found["equivalence: math"] = lambda text: plug.same(text, "\\boxed{31415.5}", "")
    for choice in both:
        call: dict[str, Any] = {"equivalence": choice, "prompts": ["q"], "solution": ["31415.5"]}

        def calibrated(text: str, call: dict[str, Any] = call) -> bool:
            return bool(FUNCTIONS["calibration"](completions=[text], **call)[0] > 0)

        def agreed(text: str, call: dict[str, Any] = call) -> bool:
            group = {**call, "prompts": ["q"] * 2, "group": [0, 0], "solution": ["31415.5"] * 2}
            return bool(FUNCTIONS["majority"](completions=["\\boxed{31415.5}", text], **group)[1] == 1)

        found[f"calibration: {choice}"], found[f"majority: {choice}"] = calibrated, agreed
    return found
