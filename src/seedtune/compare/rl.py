"""TRL's trainers in a comparison: GRPO, Dr. GRPO and RLOO. Settings are TRL's own (`GRPOConfig`, `RLOOConfig`).

What is not set is TRL's default, except for what a comparison of this size needs: 64 completions per step in groups of
8 (TRL's), a constant learning rate of 5e-6 (the paper's for conciseness; TRL's default is 1e-6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..engines.tokenization import token_ids
from ..errors import ConfigError
from .checkpoints import Checkpoints, num_steps
from .context import MethodContext

#: Their product is the number of completions per step.
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


def grpo(context: MethodContext) -> None:
    """Shao et al. (arXiv 2402.03300); TRL's default loss."""
    _train(context, "GRPO", {})


def dr_grpo(context: MethodContext) -> None:
    """Liu et al. (arXiv 2503.20783): no division by a length or by a standard deviation."""
    _train(context, "GRPO", {"loss_type": "dr_grpo", "scale_rewards": "none"})


def rloo(context: MethodContext) -> None:
    """Ahmadian et al. (arXiv 2402.14740)."""
    _train(context, "RLOO", {})


def _train(context: MethodContext, kind: str, own: dict[str, Any]) -> None:
    try:
        import trl
    except ImportError as e:
        raise ConfigError('comparing with GRPO or RLOO needs TRL: pip install trl (a clone: ".[trl]").') from e
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
        **_no_checkpointing(getattr(trl, f"{kind}Config"), context.settings),
        **own,
        **context.settings,
    }
    per_step = math.prod(int(settings[key]) for key in _BATCH)
    fixed: dict[str, Any] = {
        "output_dir": str(context.folder / "run"),
        "max_steps": num_steps(context, per_step, f"a step of {kind} ({' x '.join(_BATCH)})"),
        "max_completion_length": context.max_completion_length,
        "seed": context.seed,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": cpu,
        "bf16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if cpu else torch.cuda.is_bf16_supported(),
    }
    if context.reward_weights:  # those of environments, behind the functions', are 1
        fixed["reward_weights"] = context.reward_weights[: len(context.reward_funcs)]
    if template := context.shared.get("chat_template_kwargs"):
        fixed["chat_template_kwargs"] = dict(template)
    talks = {"tools": context.tools, "environment_factory": context.environment_factory}
    talks = {name: given for name, given in talks.items() if given is not None}
    if talks:
        fixed["max_tool_calling_iterations"] = context.shared.get("max_tool_calling_iterations")
    try:
        args = getattr(trl, f"{kind}Config")(**{**settings, **fixed})
    except (TypeError, ValueError) as e:
        raise ConfigError(f"TRL refuses the settings: {e}") from e
    tokenizer = AutoTokenizer.from_pretrained(context.model)
    trainer = getattr(trl, f"{kind}Trainer")(
        model=_ending_at(stops, context.model, args) if (stops := _stop_tokens(context, tokenizer)) else context.model,
        reward_funcs=context.reward_funcs,
        args=args,
        train_dataset=Dataset.from_list(context.train_dataset),
        **talks,
    )

    def save(folder: Path) -> None:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    trainer.add_callback(Checkpoints(context, per_step, save))
    trainer.train()


def _no_checkpointing(config: type, given: Mapping[str, Any]) -> dict[str, bool]:
    """Activations are kept, unless the settings say otherwise. transformers warns of the older of the two names."""
    names = [name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(config, name)]
    return {} if set(names) & set(given) else {names[0]: False}


def _stop_tokens(context: MethodContext, tokenizer: Any) -> list[int]:
    """Stop strings as TRL can have them: tokens that end a completion. Raises ConfigError for one of several tokens."""
    stops = []
    for text in context.stop_strings:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise ConfigError(
                f"stop_strings: TRL's trainers end completions at single tokens, and {text!r} is {len(ids)} of this "
                "model's. Leave it out for a comparison, with a reward that reads no further, or compare other methods."
            )
        stops += ids
    return stops


def _ending_at(stops: list[int], name: str, args: Any) -> Any:
    """The model as TRL loads it, but completions end at these tokens, too."""
    from trl.trainer.utils import create_model_from_path

    model = create_model_from_path(name, **(args.model_init_kwargs or {}))
    model.generation_config.eos_token_id = sorted({*token_ids(model.generation_config.eos_token_id), *stops})
    return model
