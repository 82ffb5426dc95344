"""Members of transformers' and TRL's trainers that `ESTrainer` does not have, and what to use instead."""

from __future__ import annotations

from collections.abc import Collection

from ..config.refused import REFUSED

_ONE_PROCESS = "one process runs, without accelerate: print and save as in any script; model is the model itself"
_UPDATE = "how the center moves is set in args (optimizer, learning_rate, lr_scheduler_type), and log_history has it"
_LOSS = "there is no loss and there are no gradients: ES only runs forward"
_ROWS = "the rows are prompts.train and prompts.eval; there is no data loader"
_METRICS = "metrics are in metrics.jsonl and state.log_history as they come; reward functions add some by log_metric"
_STATE = "the run is its journal, on disk after every iteration; train(resume_from_checkpoint=True) goes on"
_EVALUATION = "evaluate() measures the center on eval_dataset; for other data: seedtune eval"
_SEARCH = "a run has one base model and one set of settings: make a trainer for each; seedtune compare compares them"

#: Names, and what to do instead. Every name is in one line.
_TABLE: tuple[tuple[str, str], ...] = (
    ("accelerator create_accelerator_and_postprocess model_wrapped is_deepspeed_enabled is_fsdp_enabled", _ONE_PROCESS),
    ("is_fsdp_xla_enabled is_distributed_loading_by_transformers get_cp_size get_sp_size get_tp_size", _ONE_PROCESS),
    ("is_model_parallel place_model_on_device gather_function", _ONE_PROCESS),
    ("optimizer create_optimizer create_optimizer_and_scheduler create_scheduler get_optimizer_group", _UPDATE),
    ("get_optimizer_cls_and_kwargs get_decay_parameter_names get_learning_rates", _UPDATE),
    ("compute_loss compute_loss_context_manager autocast_smart_context_manager training_step prediction_step", _LOSS),
    ("loss_is_scaled_for_ga label_smoother get_gamma_weights get_high_entropy_mask get_off_policy_mask", _LOSS),
    ("train_dataset eval_dataset get_train_dataloader get_eval_dataloader get_test_dataloader", _ROWS),
    ("num_examples get_batch_samples", _ROWS),
    ("log log_metrics save_metrics metrics_format", _METRICS),
    ("save_state store_flos floating_point_ops current_flos set_initial_training_values", _STATE),
    ("predict evaluation_loop", _EVALUATION),
    ("hyperparameter_search call_model_init hp_name hp_space hp_search_backend objective compute_objective", _SEARCH),
    ("create_model_card", "save_model writes one, README.md, and every checkpoint has one"),
    ("init_hf_repo hub_model_id push_in_progress", "the repository is made by train(), or by push_to_hub(); see args"),
    ("end", "train() ends what it has started"),
    ("get_num_trainable_parameters", "what moves is engine.selection.parameters"),
    ("get_total_train_batch_size", "an iteration has state.train_batch_size completions"),
    ("reward_funcs reward_func_names reward_processing_classes", "they are rewards: [r.name for r in trainer.rewards]"),
    ("tokenizer", "it is processing_class"),
    ("ref_model", "the base model is kept where it is needed, and eval/kl says how far the center is from it"),
)  # fmt: skip

INSTEAD: dict[str, str] = {name: reason for names, reason in _TABLE for name in names.split()}


def explain(name: str, settings: Collection[str]) -> str:
    """Why the trainer has no attribute of that name; `settings`: the names of its settings."""
    missing = f"'ESTrainer' object has no attribute {name!r}"
    if reason := INSTEAD.get(name):
        return f"{missing}: {reason}."
    if name in settings:
        return f"{missing}: that is a setting, args.{name}."
    if reason := REFUSED.get(name):
        return f"{missing}: {reason}."
    return missing
