"""Settings of TRL, transformers and others that are no settings here: why, and what to use instead. None of them is
ignored in silence. `tests/config/test_keys.py` holds the table against the fields of the packages themselves.
"""

from __future__ import annotations

from ..es.update import OPTIMIZERS

_RATIO = "there is no ratio to clip or to correct: ES never differentiates the policy, and samples from what it updates"
_GRADIENTS = "there are no gradients: ES only runs forward"
_LOSS = "there is no loss; see fitness_shaping"
_REFERENCE = "there is no reference model; to stay near the base model set anchor_decay, or a stop_at rule on eval/kl"
_ENTROPY = "there is no loss with an entropy term; members explore by their noise: set sigma"
_EPOCHS = "set max_steps, the number of iterations"
_STEPS = "each rollout is used for one update: set prompts_per_step, population_size and max_steps"
_MEMORY = "there are no activations to save: ES only runs forward"
_PRECISION = "set dtype: bfloat16 (the default), float16 or float32"
_LOADER = "prompts are few and tokenized once, so there is no data loader"
_DISTRIBUTED = "replicas exchange seeds and rewards, not gradients: set fleet: ray and replicas"
_EVERY = "every iteration is logged, in metrics.jsonl and to report_to"
_LEVEL = "messages go through Python's logging, so set its level there: logging.getLogger('seedtune').setLevel(...)"
_UPDATE_RULE = f"set optimizer ({', '.join(OPTIMIZERS)})"
_OPTIMIZER = f"{_UPDATE_RULE}, with adam_beta1, adam_beta2, adam_epsilon and weight_decay"
_EVAL_LOSS = "there is no evaluation loss: reward functions and eval_funcs are measured on the center's completions"
_EVAL_WHEN = "the center is evaluated first, last, and every eval_steps iterations"
_EVAL_BATCH = "set generation_batch_size, rows per batch"
_ADAPTER = (
    "ES needs no adapters: perturbation: lowrank makes members cheap, rank is the rank of their noise, and scope "
    "(linear, or a regex on names) says which weights move"
)
_QUANTIZED = "give a model that is saved quantized as model_name_or_path, or pass the loaded model to ESTrainer"
_VLLM_SERVER = "vLLM runs within the run, as noise must reach its weights: set engine: vllm; more replicas: fleet: ray"
_VLLM = "set engine: vllm; members are written into its weights, which this does not go with"
_MIXTURE = "set dataset_name to one dataset or file; mix datasets before"
_COMPILE = "models run as they are: compiled code rounds differently, and members must stay comparable"
_KERNELS = "models run with their own layers, in which members' noise is placed"
_CACHE = "decoding always caches keys and values; generation_memory says how much memory they may take"
_HUB = "see push_to_hub, hub_model_id, hub_token, hub_private_repo, hub_strategy and hub_revision"
_TRACKIO = "runs stay on this machine: report_to: trackio shows them there"
_MODEL = "set model_name_or_path; in Python give the model to ESTrainer as model"
_DATA = "set dataset_name and dataset_test_split; in Python give ESTrainer train_dataset and eval_dataset"

#: Names, and why they are refused. Every name is in one line.
_TABLE: tuple[tuple[str, str], ...] = (
    # GRPO's loss
    ("beta", "ES has no KL term; to stay near the base model use anchor_decay, or a stop_at rule"),
    ("epsilon epsilon_high delta importance_sampling_level off_policy_mask_threshold use_bias_correction_kl", _RATIO),
    ("vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max", _RATIO),
    ("vllm_importance_sampling_clip_min vllm_importance_sampling_cap clip_range cliprange eps_clip", _RATIO),
    ("loss_type sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg", _LOSS),
    ("vespo_lambda_neg use_liger_loss router_aux_loss_coef label_smoothing_factor", _LOSS),
    ("average_tokens_across_devices compute_loss_func preprocess_logits_for_metrics", _LOSS),
    ("top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max", _ENTROPY),
    ("entropy_coef_delta entropy_target entropy_coeff", _ENTROPY),
    ("sync_ref_model ref_model_mixup_alpha ref_model_sync_steps kl_coef init_kl_coef kl_loss_coef", _REFERENCE),
    ("use_kl_loss kl_penalty kl_target ref_model ref_model_init_kwargs", _REFERENCE),
    ("scale_rewards", "set fitness_shaping (zscore, centered_rank, sum, group, none, pairs)"),
    ("multi_objective_aggregation", "rewards are summed with reward_weights, then shaped by fitness_shaping"),
    ("mask_truncated_completions", "return None from a reward function to leave a completion out"),
    ("gamma lam gae_lambda cliprange_value vf_coef value_model critic_learning_rate", "ES has no value function"),
    # completions per prompt, steps, batches
    ("num_generations_eval", "an evaluation draws num_generations completions per prompt, as members do"),
    ("n n_samples_per_prompt num_return_sequences group_size",
     "set num_generations, completions per member and prompt; what ES compares are members: population_size"),
    ("num_iterations steps_per_generation ppo_epochs num_mini_batches", _STEPS),
    ("num_train_epochs num_epochs epochs total_epochs total_episodes total_training_steps", _EPOCHS),
    ("gradient_accumulation_steps", "there are no gradients; set population_size and prompts_per_step"),
    ("per_device_train_batch_size", "set prompts_per_step, and generation_batch_size for rows per batch"),
    ("per_gpu_train_batch_size batch_size train_batch_size micro_batch_size rollout_batch_size micro_train_batch_size",
     "set prompts_per_step, and generation_batch_size for rows per batch"),
    ("per_device_eval_batch_size per_gpu_eval_batch_size eval_batch_size eval_accumulation_steps", _EVAL_BATCH),
    ("auto_find_batch_size", "rows per batch are what memory holds, unless generation_batch_size is set"),
    # other evolution strategies
    ("pop_size popsize population npop n_pop num_perturbations", "set population_size"),
    ("noise_std noise_stdev noise_scale sigma_init std stddev", "set sigma"),
    ("alpha", "set learning_rate"),
    ("iterations n_iterations n_iter max_iterations max_iters num_steps steps", "set max_steps"),
    # gradient training
    ("max_grad_norm neftune_noise_alpha ds3_gather_for_generation optim_target_modules", _GRADIENTS),
    ("gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing", _MEMORY),
    ("activation_checkpointing_kwargs use_gradient_checkpointing", _MEMORY),
    ("disable_dropout", "members and the center always run without dropout"),
    ("optim", _UPDATE_RULE),
    ("optim_args adafactor optimizers optimizer_cls_and_kwargs", _OPTIMIZER),
    ("lr", "set learning_rate"),
    ("lr_scheduler_kwargs", "lr_scheduler_type has no parameters but warmup_steps and warmup_ratio"),
    ("lr_scheduler", "set lr_scheduler_type"),
    # precision, compilation, memory
    ("bf16 fp16 bf16_full_eval fp16_full_eval fp16_opt_level fp16_backend half_precision_backend", _PRECISION),
    ("cast_lm_head_to_fp32 torch_dtype precision", _PRECISION),
    ("tf32", "set torch.backends.cuda.matmul.fp32_precision before; dtype is what saves time"),
    ("torch_compile torch_compile_backend torch_compile_mode torchdynamo jit_mode_eval use_ipex", _COMPILE),
    ("use_liger_kernel liger_kernel_config use_kernels", _KERNELS),
    ("use_cache cache_implementation", _CACHE),
    ("torch_empty_cache_steps", "memory for decoding is allocated once: set generation_memory"),
    ("use_cpu no_cuda", "set device: cpu"),
    ("use_mps_device xpu_backend tpu_num_cores tpu_metrics_debug", "set device: auto, cpu, cuda or cuda:N"),
    ("model_init", "a run starts from one base model: give it to ESTrainer as model"),
    ("low_cpu_mem_usage device_map", "models are loaded on the CPU, then moved: set device"),
    # decoding
    ("do_sample", "set temperature; 0 is greedy"),
    ("max_new_tokens max_tokens max_length max_response_length generate_max_len response_length",
     "set max_completion_length"),
    ("prompt_max_len", "set max_prompt_length"),
    ("max_seq_length max_model_len max_seq_len", "set max_completion_length and max_prompt_length; the context is the "
     "model's own, or vllm_max_model_length"),
    ("stop stop_sequences stop_words", "set stop_strings"),
    ("num_beams", "completions are sampled, or greedy: there is no beam search"),
    ("use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged",
     "engine: hf always batches continuously: set generation_batch_size and chunk_size"),
    ("pad_to_multiple_of", "rows are padded to the longest of their batch"),
    # vLLM
    ("use_vllm fast_inference", "set engine: vllm"),
    ("vllm_mode vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port",
     _VLLM_SERVER),
    ("vllm_model_impl vllm_enable_sleep_mode vllm_device vllm_dtype vllm_enable_prefix_caching", _VLLM),
    ("vllm_sampling_params", "set temperature, top_p, top_k, min_p, repetition_penalty and stop_strings"),
    ("vllm_structured_outputs_regex vllm_guided_decoding_regex",
     "completions are not held to a grammar: reward the format instead"),
    ("vllm_max_model_len", "set vllm_max_model_length"),
    ("gpu_memory_utilization", "set vllm_gpu_memory_utilization"),
    ("tensor_parallel_size", "set vllm_tensor_parallel_size"),
    # data
    ("remove_unused_columns", "reward functions get every column of the dataset; the model reads prompt alone"),
    ("shuffle_dataset train_sampling_strategy group_by_length length_column_name",
     "prompts are shuffled anew each time through the dataset; without prompts_per_step an iteration has all"),
    ("data_seed", "seed decides over noise, samples and the order of prompts"),
    ("ignore_data_skip", "a resume goes on where the journal ends"),
    ("label_names include_for_metrics include_inputs_for_metrics past_index", _EVAL_LOSS),
    ("dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers", _LOADER),
    ("data_collator dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order", _LOADER),
    ("dataset_num_proc", _LOADER),
    ("dataset_streaming streaming",
     "datasets are read whole: an iteration may ask for any prompt. Set max_train_samples"),
    ("datasets prompt_data train_files val_files dataset_mixer", _MIXTURE),
    ("test_split_size", "set dataset_test_split to a split or a file"),
    ("dataset_path", "set dataset_name: a file, a folder or a Hub id"),
    ("dataset_split", "set dataset_train_split"),
    ("input_key prompt_key prompt_column", "set dataset_prompt_column"),
    ("system_prompt", "put a system message into each prompt: [{role: system, ...}, {role: user, ...}]"),
    ("chat_template chat_template_path", "the tokenizer's own is used: set it there; see chat_template_kwargs"),
    ("reward_model_name_or_path reward_model reward_pretrain",
     "rewards are functions: call a reward model within one (reward_funcs)"),
    ("reward_processing_classes", "rewards are functions: tokenize within one (reward_funcs)"),
    ("reward_fn reward_function compute_score", "set reward_funcs"),
    # model
    ("pretrain model_name model_path base_model", "set model_name_or_path"),
    ("revision", "set model_revision"),
    ("use_peft lora_r lora_alpha lora_dropout lora_target_modules lora_target_parameters", _ADAPTER),
    ("lora_modules_to_save lora_task_type use_rslora use_dora lora_rank lora max_lora_rank peft_config", _ADAPTER),
    ("load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage", _QUANTIZED),
    ("bnb_4bit_compute_dtype quantization_config quantization", _QUANTIZED),
    ("flash_attn use_flash_attention_2", "set attn_implementation: flash_attention_2"),
    ("ignore_bias_buffers", "there is no DistributedDataParallel whose buffers could differ"),
    # evaluation
    ("eval_strategy evaluation_strategy do_eval eval_on_start eval_delay", _EVAL_WHEN + ": set eval_steps"),
    ("test_freq eval_freq", "set eval_steps"),
    ("prediction_loss_only eval_do_concat_batches eval_use_gather_object batch_eval_metrics do_predict", _EVAL_LOSS),
    ("compute_metrics", "give eval_funcs: they are measured on the center and never optimized"),
    # logs
    ("logging_steps logging_strategy logging_first_step", _EVERY),
    ("logging_dir", "tensorboard writes to output_dir/runs, or to what the variable TENSORBOARD_LOGGING_DIR names"),
    ("log_on_each_node log_level log_level_replica", _LEVEL),
    ("logging_nan_inf_filter", "NaN and infinity are never filtered out: a reward that is one is an error"),
    ("include_num_input_tokens_seen include_tokens_per_second",
     "num_tokens and tokens_per_second are always among the metrics"),
    ("disable_tqdm", "progress is a panel on a terminal and lines elsewhere; in Python ESTrainer(progress=Progress()) "
     "is silent"),
    ("log_multimodal", "prompts and completions are text"),
    ("num_completions_to_print", "the panel shows one; log_completions writes all to completions/"),
    ("log_completions_hub_repo", "log_completions writes to completions/: upload that folder"),
    ("wandb_log_unique_prompts", "set log_unique_prompts and log_completions"),
    ("use_wandb wandb_project wandb_entity logger", "set report_to: wandb; its project is the variable WANDB_PROJECT"),
    ("trackio_space_id trackio_bucket_id trackio_static_space_id project", _TRACKIO),
    ("skip_memory_metrics debug", "there is no memory profiler or debugger: environment.json says what ran"),
    # files
    ("overwrite_output_dir", "a run is never overwritten: name another output_dir, or go on with --resume"),
    ("save_safetensors", "checkpoints are safetensors, always"),
    ("save_on_each_node", "one process writes the run"),
    ("save_freq", "set save_steps"),
    ("enable_jit_checkpoint", "every finished iteration is in the journal, and --resume goes on from there"),
    ("resume_from_checkpoint", "give --resume; in Python trainer.train(resume_from_checkpoint=True)"),
    ("restore_callback_states_from_checkpoint", "callbacks keep no state in checkpoints"),
    ("do_train", "the command says it: seedtune train, seedtune eval"),
    ("hub_always_push", "every upload is finished before the run ends"),
    ("push_to_hub_model_id push_to_hub_organization push_to_hub_token", _HUB),
    # many processes
    ("ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend", _DISTRIBUTED),
    ("ddp_timeout local_rank fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap", _DISTRIBUTED),
    ("deepspeed accelerator_config parallelism_config split_batches dispatch_batches mp_parameters", _DISTRIBUTED),
    ("ray_scope sharded_ddp accelerate_config num_processes num_machines", _DISTRIBUTED),
    ("full_determinism", "a run is determined by its seed and settings, always: its journal proves it"),
    ("env", "set environment variables before the command"),
    ("random_state random_seed", "set seed"),
    # what ESTrainer takes
    ("model model_name_or_path", _MODEL),
    ("train_dataset eval_dataset task dataset dataset_name dataset_config dataset_train_split", _DATA),
    ("dataset_test_split", _DATA),
    ("max_train_samples max_eval_samples", _DATA + ", shortened as wanted"),
    ("reward_funcs eval_funcs callbacks processing_class", "give it to ESTrainer, under the same name"),
    ("tokenizer", "give it to ESTrainer as processing_class"),
    # what methods of transformers' Trainer take
    ("trial", "there is no search for settings: seedtune compare compares runs"),
    ("ignore_keys ignore_keys_for_eval", "an evaluation reads completions, not a model's outputs"),
    ("metric_key_prefix", "metrics of the center begin with eval/"),
    ("_internal_call", "save_model takes a folder, and nothing else"),
    ("blocking", "every upload is finished when this returns"),
    ("language license finetuned_from tasks dataset_tags dataset_args", "edit the model card, README.md, for that"),
)  # fmt: skip

REFUSED: dict[str, str] = {name: reason for names, reason in _TABLE for name in names.split()}
