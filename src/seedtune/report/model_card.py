"""The README.md of a checkpoint: what it is, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .format import number


def model_card(
    *,
    base: str,
    step: int,
    digest: str,
    settings: Mapping[str, Any],
    rewards: Sequence[str],
    metrics_before: Mapping[str, float],
    metrics_after: Mapping[str, float],
    version: str,
    best: int | None = None,
) -> str:
    """Markdown with the Hub's front matter. Settings, rewards and metrics are the run's own. `step`: after which
    iteration the center was this (0: the base model), `best`: after which it was best, as far as is known.
    """
    columns = [("before", metrics_before), ("after", metrics_after)]
    if not step:
        columns = [("base model", metrics_before)]
    elif metrics_after.get("step", step) != step:
        columns[1] = (f"after iteration {metrics_after['step']}", metrics_after)
    rows = [
        f"| {key.removeprefix('eval/')} | {' | '.join(number(of.get(key)) for _, of in columns)} |"
        for key in columns[-1][1]
        if key.startswith("eval/") and not key.startswith("eval/time")
    ]
    names = " | ".join(name for name, _ in columns)
    head = [f"| center, on the evaluation prompts | {names} |", "|---|" + "---|" * len(columns)]
    table = "\n".join([*head, *rows]) if rows else ""
    shown = ["population_size", "perturbation", *(["rank"] if settings["perturbation"] == "lowrank" else []), "sigma"]
    shown += ["learning_rate", "antithetic", "fitness_shaping", "scope", "optimizer", "dtype", "seed"]
    hub_name = f"base_model: {base}\n" if base.count("/") == 1 and not base.startswith((".", "/", "~")) else ""
    title, what = "unchanged", "The base model, as it came out of a run"
    if step:
        title, what = "fine-tuned by Evolution Strategies", f"The center after iteration {step}"
    about = f"""# {base}, {title}

{what} of Evolution Strategies (forward passes only, no gradients) on `{base}`, by Seedtune {version},
for the reward {", ".join(f"`{r}`" for r in rewards)}."""
    return f"""---
library_name: transformers
{hub_name}tags: [seedtune, evolution-strategies]
---

{about}{_standing(step, best)}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")
```

{table}

| setting | value |
|---|---|
{chr(10).join(f"| {key} | {settings[key]} |" for key in shown)}

Digest of the weights before rounding to this checkpoint's dtype: `{digest}`. The run's `journal.jsonl` rebuilds them
from the base model.

Method: Qiu et al., Evolution Strategies at Scale, arXiv 2509.24372.
"""


def _standing(step: int, best: int | None) -> str:
    """A paragraph on whether these weights are the best of the run."""
    if not step:
        said = (
            "**These are the weights of the base model**: no center that the run evaluated is better by more than "
            "chance explains."
        )
    elif best is None:
        return ""
    elif best == step:
        said = "It is the best center that the run had evaluated when this was written."
    else:
        other = f"the one after iteration {best}" if best else "the base model"
        said = f"It is not the best that the run had evaluated when this was written: that is {other}."
    return f"\n\n{said}"
