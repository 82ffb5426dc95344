"""tensorboard, wandb and trackio, through transformers' own callbacks."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from .errors import ConfigError


def reporting_callbacks(names: Sequence[str]) -> list[TrainerCallback]:
    """One callback a name. Raises ConfigError when the package is not installed."""
    made: list[TrainerCallback] = []
    for name in names:
        try:
            made.append(get_reporting_integration_callbacks([name])[0]())
        except (ImportError, RuntimeError, ValueError) as e:
            raise ConfigError(f"report_to: {name} cannot be used: {e} Try `pip install {name}`.") from e
    return made
