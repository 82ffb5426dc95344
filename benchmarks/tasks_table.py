"""Write the table of docs/guides/tasks.md: for every dataset of reasoning-gym, what its right answers and known hacks
score through `task: reasoning_gym`, and what the hacks score in the library itself.

    PYTHONHASHSEED=0 python benchmarks/tasks_table.py [--items 6]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seedtune.tasks.gym import items, scoring
from seedtune.tasks.gym.guard import DENSE, OWN, RISKS
from seedtune.tasks.gym.solutions import solution
from seedtune.tasks.reasoning_gym import answer_of

PAGE = Path(__file__).parent.parent / "docs" / "guides" / "tasks.md"
BEGIN, END = "<!-- table: benchmarks/tasks_table.py -->", "<!-- end of table -->"
Entry = dict[str, Any]


def _repetition(entry: Entry) -> str:
    """The right answer with one of its words in place of all."""
    words = re.findall(r"\w+", entry["answer"])
    several = len(set(words)) > 1 and len(entry["answer"].split()) > 1
    return re.sub(r"\w+", words[-1], entry["answer"]) if several else "1 " * 200


def _example(entry: Entry) -> str:
    """What the question shows as an example, or its last line."""
    return (scoring.examples_in(entry["question"]) or entry["question"].strip().splitlines())[-1]


HACKS: dict[str, Callable[[Entry], str]] = {
    "empty": lambda entry: "",
    "question": lambda entry: entry["question"],
    "`0`": lambda entry: "<answer>0</answer>",
    "repetition": lambda entry: f"<answer>{_repetition(entry)}</answer>",
    "example": lambda entry: f"<answer>{_example(entry)}</answer>",
    "nested tags": lambda entry: "<answer>" * 20 + "</answer>" * 20,
    "code": lambda entry: "<answer>__import__('os').getcwd()</answer>",
}


def row(name: str, count: int) -> str:
    """The line of a dataset. A hack that says the right answer is left out."""
    wanted = {"name": name, "size": count - 1, "test_size": 1, "seed": 7, "config": {}, "levels": None}
    (part,) = items.make(wanted)["parts"]
    made = [*part["train"], *part["test"]]
    gold, best = [], 0.0
    worst = dict.fromkeys(HACKS, 0.0)
    for item in made:
        entry = json.loads(item["entry"])
        entry["answer"] = solution(name, entry)

        def score(text: str, item: dict[str, Any] = item) -> float:
            answer = answer_of(text)
            return scoring.score(answer, item["entry"], name, item["config"], item["floor"]) if answer else 0.0

        gold.append(score(f"<answer>{entry['answer']}</answer>"))
        for hack, make in HACKS.items():
            text = make(entry)
            if _same(answer_of(text), entry["answer"]):
                continue
            worst[hack] = max(worst[hack], score(text))
            own = scoring.dataset(name, item["config"])
            if hack != "code":
                best = max(best, _library(own, answer_of(text), json.loads(item["entry"])))
    kind = "partly" if name in DENSE else "right or not"
    how = f"{'ours, ' if name in OWN else ''}{kind}"
    if name in RISKS:
        how += f"; {RISKS[name].why}"
    cells = [f"{min(gold):g}", *(f"{value:.2g}" for value in worst.values()), f"{best:.2g}", how.replace("|", "\\|")]
    return f"| `{name}` | {len(made)} | " + " | ".join(cells) + " |"


def _same(answer: str, gold: str) -> bool:
    return answer.strip(" .0").casefold() == gold.strip(" .0").casefold()


def _library(dataset: Any, answer: str, entry: Entry) -> float:
    try:
        return float(dataset.score_answer(answer, entry))
    except Exception:
        return 0.0


def table(count: int) -> str:
    scoring.load()
    from reasoning_gym.factory import DATASETS

    names = sorted(set(DATASETS) - {"composite"})
    head = [
        "dataset",
        "items",
        "right answers",
        *HACKS,
        "library's best",
        "how it is scored; what is wrong with its scorer",
    ]
    rows = [row(name, count) for name in names]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=6, help="items per dataset (6)")
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    made = table(parser.parse_args().items)
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
