"""The README.md of a checkpoint: what it is, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .words import number


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
) -> str:
    """Markdown with the Hub's front matter. Settings, rewards and metrics are the run's own."""
    when = f" iteration {metrics_after['step']}" if metrics_after.get("step", step) != step else ""
    rows = [
        f"| {key.removeprefix('eval/')} | {number(metrics_before.get(key))} | {number(value)} |"
        for key, value in metrics_after.items()
        if key.startswith("eval/") and not key.startswith("eval/time")
    ]
    head = [f"| centre, on the evaluation prompts | before | after{when} |", "|---|---|---|"]
    table = "\n".join([*head, *rows]) if rows else ""
    shown = ["population_size", "perturbation", *(["rank"] if settings["perturbation"] == "lowrank" else []), "sigma"]
    shown += ["learning_rate", "antithetic", "fitness_shaping", "scope", "optimizer", "dtype", "seed"]
    hub_name = f"base_model: {base}\n" if base.count("/") == 1 and not base.startswith((".", "/", "~")) else ""
    return f"""---
library_name: transformers
{hub_name}tags: [seedtune, evolution-strategies]
---

# {base}, fine-tuned by Evolution Strategies

{step} iterations of Evolution Strategies (forward passes only, no gradients) on `{base}`, by Seedtune {version},
for the reward {", ".join(f"`{r}`" for r in rewards)}.

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
