"""Settings that cannot be, or not beside one another."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..es.shaping import WITHIN_PROMPTS
from .reward_stages import check_stages
from .values import parse_rule

if TYPE_CHECKING:
    from .es_config import ESConfig


def check_together(args: ESConfig) -> None:
    """Raise ConfigError for settings that cannot be, or not beside one another."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", args.device):
        raise ConfigError(f"device is auto, cpu, cuda or cuda:N, got {args.device!r}.")
    if not isinstance(args.sigma, str) and args.sigma <= 0:
        raise ConfigError(
            f"sigma must be greater than 0, got {args.sigma:g}: with no noise all members are the same model. "
            "The paper uses 0.001."
        )
    if args.population_size < 2:
        raise ConfigError(
            f"population_size must be at least 2, got {args.population_size}: fitness compares members. "
            "The paper uses 30."
        )
    if args.perturbation == "lowrank" and args.restore == "subtract":
        raise ConfigError("restore: subtract is for perturbation: full; low-rank members never change the weights.")
    if args.perturbation == "full" and (args.lowrank_embeddings or args.lowrank_vectors):
        which = "lowrank_embeddings" if args.lowrank_embeddings else "lowrank_vectors"
        raise ConfigError(f"{which} is for perturbation: lowrank; with full, whatever is in scope moves.")
    if args.restore == "subtract" and args.master_dtype != "float32":
        raise ConfigError("restore: subtract keeps no master copy, so there is no master_dtype to choose.")
    if args.fleet == "ray" and args.restore != "exact":
        raise ConfigError("fleet: ray needs restore: exact: replicas that drift apart would not hold one center.")
    of_vllm = [f for f in dataclasses.fields(args) if f.name.startswith("vllm_")]
    theirs = [f.name for f in of_vllm if getattr(args, f.name) != f.default]
    if args.engine != "vllm" and theirs:
        raise ConfigError(f"{', '.join(theirs)}: for engine: vllm only.")
    if args.engine == "vllm" and ":" in args.device:
        raise ConfigError(
            f"engine: vllm takes the first GPU that it sees, not device: {args.device}: set CUDA_VISIBLE_DEVICES."
        )
    if args.fleet == "ray" and args.replica_gpus < args.vllm_tensor_parallel_size > 1:
        raise ConfigError(
            f"a replica on {args.vllm_tensor_parallel_size} GPUs (vllm_tensor_parallel_size) needs as many: set "
            f"replica_gpus: {args.vllm_tensor_parallel_size}, not {args.replica_gpus:g}."
        )
    if args.engine == "vllm" and args.attn_implementation:
        raise ConfigError("attn_implementation is for engine: hf; vLLM chooses its own: leave it out.")
    if args.engine == "vllm" and (args.restore != "exact" or args.lowrank_vectors or args.lowrank_embeddings):
        raise ConfigError(
            "engine: vllm has neither restore: subtract nor lowrank_vectors nor lowrank_embeddings: use engine: hf."
        )
    if args.antithetic and args.population_size % 2:
        raise ConfigError(f"antithetic members come in pairs: population_size {args.population_size} is odd.")
    if args.fitness_shaping == "pairs" and not args.antithetic:
        raise ConfigError("fitness_shaping: pairs compares the two members of a mirrored pair: set antithetic: true.")
    if args.prompts_per_member and args.fitness_shaping not in WITHIN_PROMPTS:
        raise ConfigError(
            f"with prompts_per_member, members answer different prompts, and fitness_shaping: "
            f"{args.fitness_shaping} compares their means, easy prompts with hard ones: set "
            f"one of {', '.join(WITHIN_PROMPTS)}."
        )
    if args.prompts_per_member and args.prompts_per_member > (args.prompts_per_step or args.prompts_per_member):
        raise ConfigError(
            f"prompts_per_member is {args.prompts_per_member}, but an iteration has {args.prompts_per_step} "
            "(prompts_per_step): lower the first, or raise the second."
        )
    answers = args.population_size * (args.prompts_per_member or 0)
    if args.prompts_per_member and answers < 2 * (args.prompts_per_step or 0):
        raise ConfigError(
            f"{args.population_size} members with {args.prompts_per_member} prompts each (prompts_per_member) give "
            f"two answers, which comparing takes, to {answers // 2} prompts; prompts_per_step is "
            f"{args.prompts_per_step}: lower it, or leave it out."
        )
    if args.num_warmup_steps and args.lr_scheduler_type == "constant":
        raise ConfigError(
            "warmup_steps and warmup_ratio: with lr_scheduler_type: constant there is no warm-up; set "
            "constant_with_warmup, linear or cosine."
        )
    if args.learning_rate == "auto":
        if 1 in (args.prompts_per_member, args.prompts_per_step):
            raise ConfigError(
                "learning_rate: auto measures how reliable rewards are by comparing a member's prompts, so each "
                "needs two: set prompts_per_member (or prompts_per_step) to 2, or give a number as learning_rate."
            )
        if args.optimizer != "sgd":
            raise ConfigError(
                f"learning_rate: auto knows how far a step of optimizer: sgd moves the model, not one of "
                f"{args.optimizer}: use sgd, or give a number as learning_rate."
            )
    _check_samples(args)
    if args.weight_decay and args.anchor_decay:
        raise ConfigError("weight_decay pulls toward zero, anchor_decay toward the base model: set one of them.")
    if not 0 <= args.seed < 2**64:
        raise ConfigError(f"seed is an integer of 64 bits, 0 <= seed < 2**64, got {args.seed}.")
    if args.repetition_penalty <= 0:
        raise ConfigError(f"repetition_penalty must be greater than 0 (1: off), got {args.repetition_penalty:g}.")
    for f in dataclasses.fields(args):
        if str(f.type).startswith("dict"):
            _check_written(args, f.name)
    if not args.output_dir:
        raise ConfigError("output_dir is empty: name the folder of the run.")
    if "" in args.stop_strings:
        raise ConfigError("stop_strings: an empty text would end every completion at once: leave it out.")
    if not 0 < args.top_p <= 1:
        raise ConfigError(f"top_p is a probability, 0 < top_p <= 1, got {args.top_p}.")
    for rule in args.stop_at:
        parse_rule(rule)
    check_stages(args.reward_weights)


def _check_written(args: ESConfig, name: str) -> None:
    """Raises ConfigError for a mapping that the journal and config.resolved.yaml cannot hold."""
    try:
        json.dumps(getattr(args, name), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        advice = " In Python, give functools.partial(function, ...) as the reward function."
        raise ConfigError(
            f"{name} is written into the run's folder: texts, numbers, lists and mappings; got "
            f"{getattr(args, name)!r}.{advice if name == 'reward_args' else ''}"
        ) from None


def _check_samples(args: ESConfig) -> None:
    if args.num_generations > 1 and args.temperature == 0:
        raise ConfigError(
            f"num_generations is {args.num_generations}, and at temperature 0 a member completes a prompt the same "
            "way every time: set temperature (1 is the model's own distribution), or num_generations: 1."
        )
    if args.aggregate != "mean" and args.num_generations == 1:
        raise ConfigError(
            f"aggregate: {args.aggregate} makes one reward of several completions per member and prompt, and "
            "num_generations is 1: set it to 2 or more, with a temperature, or leave aggregate out."
        )
    if (args.aggregate == "pass_at_k") != (args.aggregate_k is not None):
        raise ConfigError(
            "aggregate: pass_at_k needs its k: set aggregate_k, from 1 to num_generations."
            if args.aggregate_k is None
            else f"aggregate_k is for aggregate: pass_at_k, not for aggregate: {args.aggregate}: leave it out."
        )
    if (args.aggregate_k or 0) > args.num_generations:
        raise ConfigError(
            f"aggregate_k is {args.aggregate_k}: the best of so many cannot be told from {args.num_generations} "
            "completions (num_generations): lower the first, or raise the second."
        )
