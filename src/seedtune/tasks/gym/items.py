"""Items of a dataset of reasoning-gym, made in a process of its own: `python -m seedtune.tasks.gym.items` reads what is
wanted as JSON and prints the items. Some datasets go by the order of sets, so the process begins with a fixed hash seed
(`PYTHONHASHSEED`): the same settings give the same items everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from .scoring import dataset, guarded_score, junk_floor, load, parsed
from .solutions import SLOW, solution

#: Items are looked at until so many times those that are wanted.
_PATIENCE = 8


def is_held_out(question: str) -> bool:
    """Whether an item is one to test on: a fifth of all are, by the hash of the question."""
    return hashlib.sha256(question.encode("utf-8", "backslashreplace")).digest()[0] % 5 == 0


def make(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The items of each level, those to train on and those to test on, as JSON holds them. A wrong setting gives an
    `error` instead, a text.
    """
    try:
        load()
        from reasoning_gym.factory import CURRICULA, DATASETS
    except ImportError as e:
        return {"error": f"task: reasoning_gym needs reasoning-gym 0.1.25 ({e}): pip install 'seedtune[reasoning-gym]'"}
    name = wanted["name"]
    known = sorted(set(DATASETS) - {"composite"})
    if name not in known:
        return {"error": f"task_args: reasoning-gym has no dataset {name!r}; it has: {', '.join(known)}"}
    parts = []
    for level in wanted["levels"] or [None]:
        try:
            config = _config(wanted, level, CURRICULA.get(name), DATASETS[name][1])
            parts.append(_items(name, config, level, wanted))
        except Exception as e:  # whatever reasoning-gym raises for a setting
            at = "" if level is None else f" at level {level}"
            why = str(e) or type(e).__name__
            return {"error": f"task_args: reasoning-gym refuses these settings of {name}{at}: {why}"}
    return {"parts": parts}


def _config(wanted: Mapping[str, Any], level: int | None, curriculum: Any, kind: Any) -> dict[str, Any]:
    """Arguments of the dataset: those of the level, and over them those of the user."""
    fixed = {"seed": wanted["seed"], "size": _PATIENCE * (wanted["size"] + wanted["test_size"]) + 100}
    if level is None:
        return {**wanted["config"], **fixed}
    if curriculum is None:
        raise ValueError("it has no curriculum; leave levels out")
    course = curriculum()
    count = max(len(attribute.levels) for attribute in course.attributes.values())
    if not 0 <= level < count:
        raise ValueError(f"its curriculum has levels 0 to {count - 1}")
    course.set_global_level(level)
    of_level = vars(course.generate_configuration({"seed": wanted["seed"]}))
    of_level = {key: value for key, value in of_level.items() if key in kind.__dataclass_fields__}
    return {**of_level, **wanted["config"], **fixed}


def _items(name: str, config: dict[str, Any], level: int | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Different questions whose right answer scores full marks through the guard; `left_out`: how many did not."""
    text = json.dumps(config, default=str)
    source = dataset(name, text)
    left = {False: wanted["size"], True: wanted["test_size"]}
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    seen: set[str] = set()
    left_out = 0
    for n in range(config["size"]):
        if not any(left.values()):
            break
        item = source[n]
        side = is_held_out(item["question"])
        if item["question"] in seen or not left[side]:
            continue
        seen.add(item["question"])
        if name not in SLOW:
            item = {**item, "answer": solution(name, item)}
        entry = json.dumps({key: item[key] for key in ("question", "answer", "metadata")}, default=str)
        if name not in SLOW and guarded_score(item["answer"], parsed(entry), name, text) < 1:
            left_out += 1
            continue
        floor = junk_floor(parsed(entry), name, text)
        found[side].append({"entry": entry, "floor": floor, "level": level or 0, "config": text})
        left[side] -= 1
    return {"train": found[False], "test": found[True], "left_out": left_out, "seen": len(seen)}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        made = make(json.load(sys.stdin))
    json.dump(made, sys.stdout)
    sys.stdout.flush()
    os._exit(0)
