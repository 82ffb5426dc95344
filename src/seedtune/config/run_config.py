"""`RunConfig`: what the command line needs besides `ESConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .es_config import ESConfig, Group
from .keys import checks_keys

DATA = "Model and data"
data = Group(DATA)


@checks_keys
@dataclass(frozen=True)
class RunConfig(ESConfig):
    """What the command line needs besides `ESConfig`: which model, which data, which rewards. TRL's names.

    Raises ConfigError as `ESConfig` does.
    """

    model_name_or_path: str = data(
        "Hub id, folder, GGUF file, or smollm2-135m-instruct", "smollm2-135m-instruct", affects_weights=False
    )
    task: str | None = data("a built-in task")
    task_args: dict[str, Any] | None = data("which variant of the task, e.g. {rungs: [1, 2], style: chat} of countdown")
    dataset_name: str | None = data("a file (JSONL, JSON, CSV, Parquet...), folder, or Hub id")
    dataset_config: str | None = data("configuration of a Hub dataset")
    dataset_prompt_column: str | None = data("the column that holds the prompt; default: prompt", affects_weights=False)
    dataset_train_split: str = data("split to train on", "train")
    dataset_test_split: str | None = data("split (or file) to evaluate on", affects_weights=False)
    max_train_samples: int | None = data("train on the first N rows only", at_least=1)
    max_eval_samples: int | None = data("evaluate on the first N rows only", affects_weights=False, at_least=1)
    reward_funcs: list[str] | None = data("built-in name, package.module.function, file.py:function")
    eval_funcs: list[str] | None = data("measured on the center, never optimized", affects_weights=False)
    tools: list[str] | None = data("functions that the model may call: package.module.function, file.py:function")
    environment_factory: str | None = data("environments whose methods the model may call: file.py:Class")
