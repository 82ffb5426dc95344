"""Evolution Strategies in a comparison: our own trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..errors import ConfigError
from ..recipe import resolve
from ..report.progress import Progress
from ..trainer import ESTrainer
from .trainee import Trainee


def train(trainee: Trainee) -> None:
    """Settings are `ESConfig`'s. A population answers all its prompts, so the budget is rounded down to iterations."""
    fixed = {
        "output_dir": str(trainee.folder / "run"),
        "eval_steps": 0,
        "drift_samples": 0,
        "save_only_model": True,
        "seed": trainee.seed,
    }
    args = resolve({**trainee.shared, **trainee.settings}, fixed)
    an_iteration = args.population_size * (args.prompts_per_step or len(trainee.train_dataset))
    if an_iteration > trainee.generations:
        raise ConfigError(
            f"an iteration of es is {an_iteration} generations (population_size x prompts_per_step), more than the "
            f"budget of {trainee.generations}."
        )
    args = resolve({**trainee.shared, **trainee.settings}, {**fixed, "max_steps": trainee.generations // an_iteration})
    trainer = ESTrainer(
        model=trainee.model,
        reward_funcs=trainee.reward_funcs,
        args=args,
        train_dataset=trainee.train_dataset,
        eval_dataset=trainee.train_dataset[:1],
        progress=Progress(),
    )
    trainer.add_callback(_Checkpoints(trainee, trainer, an_iteration))
    trainer.train()


class _Checkpoints(TrainerCallback):
    def __init__(self, trainee: Trainee, trainer: ESTrainer, an_iteration: int) -> None:
        self.trainee, self.trainer, self.an_iteration = trainee, trainer, an_iteration

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.trainee.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        generations = state.global_step * self.an_iteration
        if self.trainee.due(generations) or state.global_step == state.max_steps:
            self.trainee.checkpoint(generations, state.num_input_tokens_seen, self._save)

    def _save(self, folder: Path) -> None:
        self.trainer.save_model(str(folder))
