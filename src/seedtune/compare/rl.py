"""TRL's trainers in a comparison: GRPO, Dr. GRPO and RLOO. Settings are TRL's own (`GRPOConfig`, `RLOOConfig`).

Where a setting is silent it is TRL's default, but for what a comparison of this size needs: 64 completions a step in
groups of 8 (TRL's), a constant learning rate of 5e-6 (the paper's for conciseness; TRL's default is 1e-6).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, TrainerCallback

from ..errors import ConfigError
from .trainee import Trainee


def grpo(trainee: Trainee) -> None:
    """Shao et al. (arXiv 2402.03300); TRL's default loss."""
    _train(trainee, "GRPO", {})


def dr_grpo(trainee: Trainee) -> None:
    """Liu et al. (arXiv 2503.20783): no division by a length or by a standard deviation."""
    _train(trainee, "GRPO", {"loss_type": "dr_grpo", "scale_rewards": "none"})


def rloo(trainee: Trainee) -> None:
    """Ahmadian et al. (arXiv 2402.14740)."""
    _train(trainee, "RLOO", {})


def _train(trainee: Trainee, kind: str, own: dict[str, Any]) -> None:
    try:
        import trl
    except ImportError as e:
        raise ConfigError('comparing with GRPO or RLOO needs TRL. In a clone of Seedtune: pip install ".[trl]".') from e
    import torch
    from datasets import Dataset

    cpu = not torch.cuda.is_available()
    settings = {
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 4,
        "num_generations": 8,
        "learning_rate": 5e-6,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        **own,
        **trainee.settings,
    }
    a_step = int(settings["per_device_train_batch_size"]) * int(settings["gradient_accumulation_steps"])
    if a_step > trainee.generations:
        raise ConfigError(
            f"a step of {kind} is {a_step} generations (per_device_train_batch_size x gradient_accumulation_steps), "
            f"more than the budget of {trainee.generations}."
        )
    fixed: dict[str, Any] = {
        "output_dir": str(trainee.folder / "run"),
        "max_steps": trainee.generations // a_step,
        "max_completion_length": trainee.max_completion_length,
        "seed": trainee.seed,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": cpu,
        "bf16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if cpu else torch.cuda.is_bf16_supported(),
    }
    if trainee.reward_weights:
        fixed["reward_weights"] = trainee.reward_weights
    if template := trainee.shared.get("chat_template_kwargs"):
        fixed["chat_template_kwargs"] = dict(template)
    try:
        args = getattr(trl, f"{kind}Config")(**{**settings, **fixed})
    except (TypeError, ValueError) as e:
        raise ConfigError(f"TRL refuses the settings: {e}") from e
    trainer = getattr(trl, f"{kind}Trainer")(
        model=trainee.model,
        reward_funcs=trainee.reward_funcs,
        args=args,
        train_dataset=Dataset.from_list(trainee.train_dataset),
    )
    trainer.add_callback(_Checkpoints(trainee, trainer, a_step))
    trainer.train()


class _Checkpoints(TrainerCallback):
    def __init__(self, trainee: Trainee, trainer: Any, a_step: int) -> None:
        self.trainee, self.trainer, self.a_step = trainee, trainer, a_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainee.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        generations = state.global_step * self.a_step
        if self.trainee.due(generations) or state.global_step == state.max_steps:
            self.trainee.checkpoint(generations, int(state.num_input_tokens_seen), self._save)

    def _save(self, folder: Path) -> None:
        self.trainer.accelerator.unwrap_model(self.trainer.model).save_pretrained(folder)
        AutoTokenizer.from_pretrained(self.trainee.model).save_pretrained(folder)
