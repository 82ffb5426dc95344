"""Datasets of reasoning-gym 0.1.25, each with its own scorer, behind our guard (docs/tasks.md).

    task: reasoning_gym
    task_args: {name: mini_sudoku, size: 800, test_size: 200, config: {min_empty: 8}, levels: [0, 1]}

An item is held out if the hash of its question says so, so that train and test are disjoint however many are made.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from ..errors import ConfigError
from ..utils.limited import LimitedProcess
from .base import Row, Rows, Task, text_of
from .final_answer import last_boxed, last_tagged
from .gym import scoring
from .gym.solutions import solution
from .prompting import asker, check_style, check_whole

log = logging.getLogger(__name__)

#: An answer is scored within 0.8 seconds; the first one waits for a process that imports reasoning-gym.
_process = LimitedProcess()

_INSTRUCTION = "Put your final answer, and nothing else, between <answer> and </answer>."


def configure(
    name: str,
    size: int = 500,
    test_size: int = 100,
    seed: int = 1,
    config: Mapping[str, Any] | None = None,
    levels: Sequence[int] | None = None,
    style: str = "chat",
    examples: int = 0,
) -> Task:
    """A dataset as a task. `size`, `test_size`: items to train on, and to test on (of each level); fewer where there
    are no more. `config`: settings of the dataset, by reasoning-gym's names. `levels`: of its curriculum, from easy to
    hard; the column `level` has them. `style` and `examples`: how many solved items stand in front (`prompting`).

    Raises ConfigError.
    """
    if not isinstance(name, str):
        raise ConfigError(f"task_args: name is the name of a dataset of reasoning-gym, got {name!r}.")
    check_style(style)
    for setting, value, least in (("size", size, 1), ("test_size", test_size, 1), ("examples", examples, 0)):
        check_whole(setting, value, least)
    check_whole("seed", seed, 0)
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(f"task_args: config is a mapping of settings of {name}, got {config!r}.")
    known = not isinstance(levels, str) and isinstance(levels, Sequence) and len(levels) > 0
    if levels is not None and not (known and all(isinstance(n, int) and n >= 0 for n in levels)):
        raise ConfigError(f"task_args: levels is a list of whole numbers, for example [0, 1, 2], got {levels!r}.")
    wanted = {"name": name, "size": size + examples, "test_size": test_size, "seed": seed, "config": config or {}}
    asked = json.dumps({**wanted, "levels": list(levels) if levels else None}, sort_keys=True)
    stop = {"stop_strings": ["</answer>"]} if style == "few_shot" else {}
    course = {"curriculum": {"column": "level", "success": reasoning_gym_score.__name__}} if levels else {}
    return Task(
        name="reasoning_gym",
        load=partial(_load, asked, style, examples),
        rewards=(reasoning_gym_score,),
        gold_metrics=(reasoning_gym_solved,),
        reference=_reference,
        full_marks=1.0,
        hacks=(
            lambda row: "",
            lambda row: "<answer></answer>",
            lambda row: "<answer>" * 50 + "</answer>" * 50,
            lambda row: json.loads(row["entry"])["question"],
            lambda row: f"<answer>{'9' * 300}</answer>",
            lambda row: "<answer>__import__('os').getcwd()</answer>",
        ),
        defaults={"max_completion_length": 256, **stop, **course},
    )


def answer_of(text: str) -> str:
    """What a completion answers: what stands in its last `<answer>`, or in its last box; without either, all of it."""
    found = last_tagged(text)
    if found is None and "<answer>" not in text:
        found = last_boxed(text)
        return text.strip() if found is None else found
    return found or ""


def reasoning_gym_score(
    completions: Sequence[Any],
    entry: Sequence[str],
    name: Sequence[str],
    config: Sequence[str],
    floor: Sequence[float],
    log_metric: Any = None,
    **_: Any,
) -> list[float]:
    """What the dataset's own scorer gives, above what it gives for junk: 1 for a right answer, 0 for junk. What cannot
    be scored in time scores 0; `reasoning_gym/late` counts it.
    """
    answers = [answer_of(text_of(completion)) for completion in completions]
    found = [*map(_scored, answers, entry, name, config, floor)]
    if log_metric and found:
        log_metric("reasoning_gym/late", sum(score is None for score in found) / len(found))
    return [score or 0.0 for score in found]


def reasoning_gym_solved(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 for full marks, else 0."""
    scores = reasoning_gym_score(completions, **{**columns, "log_metric": None})
    return [float(score >= 1) for score in scores]


def _scored(answer: str, entry: str, name: str, config: str, floor: float) -> float | None:
    if not answer:
        return 0.0
    text = answer[: len(entry) + 4000]  # the guard refuses what is longer than that
    return _process.call(scoring.score, text, entry, name, config, floor, imports=scoring.load)


def _reference(row: Row) -> str:
    entry = json.loads(row["entry"])
    return f"<answer>{solution(row['name'], entry)}</answer>"


@lru_cache(maxsize=4)
def _load(asked: str, style: str, examples: int) -> tuple[Rows, Rows]:
    """The items, made in a process of its own. Raises ConfigError."""
    wanted = json.loads(asked)
    name: str = wanted["name"]
    train: list[Row] = []
    test: list[Row] = []
    for part in _made(asked):
        if part["left_out"]:
            log.warning(
                f"reasoning_gym: {part['left_out']} of {part['seen']} items of {name} left out: the answer that "
                "reasoning-gym gives for them does not score full marks."
            )
        if min(len(part["train"]) - examples, len(part["test"])) < 1:
            raise ConfigError(
                f"task_args: {name} has {part['seen']} different questions with these settings: too few to train on "
                "some and hold out a fifth. Set config so that there are more, or lower examples."
            )
        solved, rest = part["train"][:examples], part["train"][examples:]
        shown = [(json.loads(item["entry"])["question"], _reference({**item, "name": name})) for item in solved]
        ask = asker(style, _INSTRUCTION, shown)
        for rows, items in ((train, rest), (test, part["test"])):
            rows += [{"prompt": ask(json.loads(item["entry"])["question"]), "name": name, **item} for item in items]
    return train, test


def _made(asked: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "seedtune.tasks.gym.items"]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=environment, check=False)
    try:
        made: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise ConfigError(f"task: reasoning_gym could make no items:\n{done.stderr[-2000:]}") from None
    if "error" in made:
        raise ConfigError(f"{made['error']}.")
    parts: list[dict[str, Any]] = made["parts"]
    return parts


def _nameless() -> tuple[Rows, Rows]:
    raise ConfigError("task: reasoning_gym needs a dataset: task_args: {name: mini_sudoku}, for example.")


TASK = Task(
    name="reasoning_gym",
    load=_nameless,
    rewards=(reasoning_gym_score,),
    gold_metrics=(reasoning_gym_solved,),
    reference=_reference,
    full_marks=1.0,
    configure=configure,
)
