"""`ESConfig`: every setting of a run, frozen. Names that TRL and transformers have keep their names and meaning."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ClassVar, TypeVar

from .errors import ConfigError
from .es.shaping import SHAPINGS
from .es.update import OPTIMIZERS
from .values import coerce, one_of, parse_rule

C = TypeVar("C")

#: Keys of GRPO (and of gradient training) that mean nothing here, and why.
REFUSED = {
    "beta": "ES has no KL term; to stay near the base model use anchor_decay, or a stop_at rule",
    "epsilon": "there is no ratio to clip: ES never differentiates the policy",
    "epsilon_high": "there is no ratio to clip: ES never differentiates the policy",
    "delta": "there is no ratio to clip: ES never differentiates the policy",
    "num_generations": "ES compares members, not completions of one prompt; set population_size",
    "num_iterations": "each generation is used for one update; set max_steps",
    "loss_type": "there is no loss; see fitness_shaping",
    "scale_rewards": "set fitness_shaping (zscore, centered_rank, sum, group, none)",
    "mask_truncated_completions": "return None from a reward function to leave a completion out",
    "sync_ref_model": "there is no reference model",
    "steps_per_generation": "each generation is used for one update",
    "per_device_train_batch_size": "set prompts_per_step, and generation_batch_size for rows a batch",
    "gradient_accumulation_steps": "there are no gradients; set population_size and prompts_per_step",
    "gradient_checkpointing": "there are no activations to save: ES only runs forward",
    "max_grad_norm": "there are no gradients",
    "num_train_epochs": "set max_steps, the number of iterations",
    "warmup_steps": "the learning rate is constant",
    "warmup_ratio": "the learning rate is constant",
    "lr_scheduler_type": "the learning rate is constant",
    "logging_steps": "every iteration is logged",
    "eval_strategy": "set eval_steps",
    "save_strategy": "set save_steps",
    "do_sample": "set temperature; 0 is greedy",
    "optim": "set optimizer (sgd, momentum, adam)",
    "bf16": "set dtype: bfloat16",
    "fp16": "set dtype: float16",
    "use_vllm": "set engine: vllm",
    "num_generations_eval": "evaluation decodes each prompt once",
    "model_init_kwargs": "set dtype, model_revision and trust_remote_code",
}


def setting(group: str, help: str, default: Any = dataclasses.MISSING, *, learning: bool = True) -> Any:
    """A field with what the command line and the YAML file say of it. `learning`: the result depends on it."""
    return field(default=default, metadata={"group": group, "help": help, "learning": learning})


def check_keys(cls: type[Any], given: Mapping[str, Any]) -> None:
    """Raise ConfigError for keys that `cls` does not have: says why a GRPO key is refused, or suggests the nearest."""
    known = [f.name for f in dataclasses.fields(cls)]
    for key in given:
        if key in known:
            continue
        if key in REFUSED:
            raise ConfigError(f"{key!r} is a GRPO setting that Evolution Strategies do not have: {REFUSED[key]}.")
        near = difflib.get_close_matches(key, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else " `seedtune train --help` lists all keys."
        raise ConfigError(f"unknown setting {key!r}.{hint}")


def checks_keys(cls: type[C]) -> type[C]:
    """A class decorator: the constructor itself says why a key is not there; a TRL user meets it there first."""
    made = cls.__init__

    @wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        check_keys(type(self), kwargs)
        made(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


@checks_keys
@dataclass(frozen=True)
class ESConfig:
    """Settings of a run. Raises ConfigError for a value out of range, an unknown key, or a key of GRPO only."""

    output_dir: str = setting("Output", "folder of the run", "out", learning=False)
    max_steps: int = setting("Output", "iterations", 100, learning=False)
    eval_steps: int = setting("Output", "evaluate the centre every N iterations; 0: first and last", 10, learning=False)
    drift_samples: int = setting(
        "Output",
        "responses a prompt that an evaluation samples to measure KL from the base model (with the weights' distance "
        "and a probe's perplexity); costs a copy of the base weights; 0: none of it",
        1,
        learning=False,
    )
    save_steps: int = setting("Output", "checkpoint every N iterations; 0: only at the end", 0, learning=False)
    save_only_model: bool = setting(
        "Output",
        "no state.safetensors in checkpoints: half the size; a resume repeats all updates",
        False,
        learning=False,
    )
    save_total_limit: int | None = setting("Output", "keep the newest N checkpoints", None, learning=False)
    log_completions: bool = setting("Output", "write members' completions to completions/", False, learning=False)
    report_to: str | list[str] = setting(
        "Output", "none, tensorboard, wandb or trackio (metrics.jsonl is always written)", "none", learning=False
    )
    run_name: str | None = setting("Output", "name of the run for report_to", None, learning=False)
    stop_at: list[str] = setting(
        "Output", "stop when one holds after an evaluation, e.g. 'eval/correct < 0.5'", None, learning=False
    )

    population_size: int = setting("Evolution strategies", "members an iteration (N)", 30)
    sigma: float | str = setting(
        "Evolution strategies", "noise scale, or auto: measured before the first iteration", 0.001
    )
    learning_rate: float | None = setting(
        "Evolution strategies", "alpha; default sigma / 2 (the paper's), for lowrank 2 * sigma", None
    )
    prompts_per_step: int | None = setting(
        "Evolution strategies", "prompts an iteration, the same for all members; default: the whole dataset", None
    )
    antithetic: bool = setting("Evolution strategies", "members in mirrored pairs", False)
    fitness_shaping: str = setting("Evolution strategies", "zscore, centered_rank, sum, group or none", "zscore")
    perturbation: str = setting(
        "Evolution strategies", "full (the paper), or lowrank (linear layers only, all members in one batch)", "full"
    )
    rank: int = setting("Evolution strategies", "rank of lowrank noise", 1)
    lowrank_vectors: bool = setting("Evolution strategies", "lowrank: biases and norms move too, full-rank", False)
    lowrank_embeddings: bool = setting(
        "Evolution strategies",
        "lowrank: embeddings in scope move too, low-rank, and the head that is tied to one",
        False,
    )
    scope: str = setting("Evolution strategies", "which weights move: all, linear, or a regex on names", "all")
    noise: str = setting("Evolution strategies", "iid, or shared (restarts at every layer, as the paper's code)", "iid")
    restore: str = setting("Evolution strategies", "exact, or subtract (least memory, lossy)", "exact")
    master_dtype: str = setting(
        "Evolution strategies",
        "the centre's copy: float32, or bfloat16 (half the size, stochastic rounding)",
        "float32",
    )
    seed: int = setting("Evolution strategies", "the run's seed", 42)

    optimizer: str = setting("Update", "sgd (the paper's), momentum or adam", "sgd")
    adam_beta1: float = setting("Update", "momentum's or Adam's first decay", 0.9)
    adam_beta2: float = setting("Update", "Adam's second decay", 0.999)
    adam_epsilon: float = setting("Update", "Adam's epsilon", 1e-8)
    weight_decay: float = setting("Update", "decoupled decay toward zero", 0.0)
    anchor_decay: float = setting("Update", "decoupled decay toward the base model", 0.0)

    max_completion_length: int = setting("Generation", "new tokens at most", 256)
    temperature: float = setting("Generation", "0: greedy, as in the paper", 0.0)
    top_p: float = setting("Generation", "nucleus, when sampling", 1.0)
    top_k: int = setting("Generation", "0: off", 0)
    generation_batch_size: int | None = setting("Generation", "rows decoded together; default: what fits", None)
    chunk_size: int | None = setting(
        "Generation", "rows handed out as a unit; as rows end, others take their places; default: twice the batch", None
    )
    generation_memory: float | None = setting(
        "Generation", "GB for keys and values; default: 1, or half of what a GPU has free", None, learning=False
    )
    chat_template_kwargs: dict[str, Any] = setting("Generation", "passed to the chat template", None)

    reward_weights: list[float] | None = setting("Rewards", "one weight a reward function; default 1", None)
    reward_workers: int | None = setting(
        "Rewards",
        "scoring processes (with ray: actors); 0: in this process, no limit; default: one, with ray one a replica",
        None,
        learning=False,
    )
    reward_timeout: float = setting("Rewards", "seconds without a result before the run stops", 60.0, learning=False)

    fleet: str = setting("Fleet", "local, or ray: replicas in their own processes or machines", "local", learning=False)
    replicas: int = setting("Fleet", "with ray: how many", 1, learning=False)
    address: str | None = setting(
        "Fleet",
        "with ray: the cluster to join (auto: the one on this machine); default: start one",
        None,
        learning=False,
    )
    replica_cpus: int = setting("Fleet", "with ray: cores, and threads, of a replica", 1, learning=False)
    replica_gpus: float = setting("Fleet", "with ray: GPUs of a replica", 0.0, learning=False)
    replica_timeout: float = setting(
        "Fleet", "with ray: seconds without an answer before a replica counts as lost", 600.0, learning=False
    )
    share_model: bool = setting(
        "Fleet", "with ray: send the model's files to nodes that do not see its folder, once", False, learning=False
    )
    drop_stragglers: int = setting(
        "Fleet",
        "with ray: members that an iteration may leave out when it waits for slow replicas only; journaled",
        0,
        learning=False,
    )

    engine: str = setting(
        "Model", "what generates: hf (transformers), or vllm (lowrank: scope all is linear)", "hf", learning=False
    )
    vllm_gpu_memory_utilization: float = setting(
        "Model", "with vllm: share of the GPU's memory that it may take", 0.9, learning=False
    )
    vllm_tensor_parallel_size: int = setting(
        "Model", "with vllm: GPUs (on a CPU: groups of cores) for a model", 1, learning=False
    )
    vllm_max_model_length: int | None = setting(
        "Model", "with vllm: longest prompt with its completion; default: the model's own", None, learning=False
    )
    model_revision: str | None = setting("Model", "branch, tag or commit on the Hub", None)
    trust_remote_code: bool = setting("Model", "run code that comes with the model", False, learning=False)
    dtype: str = setting("Model", "precision of inference: bfloat16, float16 or float32", "bfloat16")
    device: str = setting("Model", "auto, cpu, cuda or cuda:N", "auto", learning=False)
    threads: int | None = setting("Model", "CPU threads; default: all cores", None, learning=False)

    def __post_init__(self) -> None:
        for name, empty in (("stop_at", []), ("chat_template_kwargs", {})):
            if getattr(self, name) is None:
                object.__setattr__(self, name, empty)
        if isinstance(self.stop_at, str):
            object.__setattr__(self, "stop_at", [self.stop_at])
        self._check_kinds()
        self._check_ranges()
        if self.by_adapters and self.scope == "all":
            object.__setattr__(self, "scope", "linear")  # what vLLM's adapters can carry

    @property
    def by_adapters(self) -> bool:
        """Whether members are vLLM's adapters."""
        return self.engine == "vllm" and self.perturbation == "lowrank"

    @property
    def alpha(self) -> float:
        """The learning rate: as given, or sigma / 2 (Qiu et al.); for low rank 2 sigma, by experiment (LOG.md)."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.fixed_sigma * (2 if self.perturbation == "lowrank" else 0.5)

    @property
    def fixed_sigma(self) -> float:
        """Sigma as a number; 0 while `auto` is not measured yet."""
        return 0.0 if isinstance(self.sigma, str) else self.sigma

    def _check_kinds(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, coerce(f.name, str(f.type), getattr(self, f.name)))

    def _check_ranges(self) -> None:
        one_of("fitness_shaping", self.fitness_shaping, [*SHAPINGS])
        one_of("optimizer", self.optimizer, [*OPTIMIZERS])
        one_of("perturbation", self.perturbation, ["full", "lowrank"])
        one_of("noise", self.noise, ["iid", "shared"])
        one_of("restore", self.restore, ["exact", "subtract"])
        one_of("master_dtype", self.master_dtype, ["float32", "bfloat16"])
        one_of("engine", self.engine, ["hf", "vllm"])
        one_of("fleet", self.fleet, ["local", "ray"])
        one_of("dtype", self.dtype, ["bfloat16", "float16", "float32"])
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device is auto, cpu, cuda or cuda:N, got {self.device!r}.")
        for name in self.reporters:
            one_of("report_to", name, ["tensorboard", "wandb", "trackio"])
        if not isinstance(self.sigma, str) and self.sigma <= 0:
            raise ConfigError(
                f"sigma must be greater than 0, got {self.sigma:g}: with no noise all members are the same model. "
                "The paper uses 0.001."
            )
        if self.population_size < 2:
            raise ConfigError(
                f"population_size must be at least 2, got {self.population_size}: fitness compares members. "
                "The paper uses 30."
            )
        if self.perturbation == "lowrank" and self.restore == "subtract":
            raise ConfigError("restore: subtract is for perturbation: full; low-rank members never change the weights.")
        if self.perturbation == "full" and (self.lowrank_embeddings or self.lowrank_vectors):
            which = "lowrank_embeddings" if self.lowrank_embeddings else "lowrank_vectors"
            raise ConfigError(f"{which} is for perturbation: lowrank; with full, whatever is in scope moves.")
        if self.restore == "subtract" and self.master_dtype != "float32":
            raise ConfigError("restore: subtract keeps no master copy, so there is no master_dtype to choose.")
        if self.fleet == "ray" and self.restore != "exact":
            raise ConfigError("fleet: ray needs restore: exact: replicas that drift apart would not hold one centre.")
        theirs = [n for n in VLLM_DEFAULTS if getattr(self, n) != VLLM_DEFAULTS[n]]
        if self.engine != "vllm" and theirs:
            raise ConfigError(f"{', '.join(theirs)}: for engine: vllm only.")
        if self.engine == "vllm" and ":" in self.device:
            raise ConfigError(
                f"engine: vllm takes the first GPU that it sees, not device: {self.device}: set CUDA_VISIBLE_DEVICES."
            )
        if self.fleet == "ray" and self.replica_gpus < self.vllm_tensor_parallel_size > 1:
            raise ConfigError(
                f"a replica on {self.vllm_tensor_parallel_size} GPUs (vllm_tensor_parallel_size) needs as many: set "
                f"replica_gpus: {self.vllm_tensor_parallel_size}, not {self.replica_gpus:g}."
            )
        if self.engine == "vllm" and (self.restore != "exact" or self.lowrank_vectors or self.lowrank_embeddings):
            raise ConfigError(
                "engine: vllm has neither restore: subtract nor lowrank_vectors nor lowrank_embeddings: use engine: hf."
            )
        for name in ("vllm_gpu_memory_utilization", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        if self.antithetic and self.population_size % 2:
            raise ConfigError(f"antithetic members come in pairs: population_size {self.population_size} is odd.")
        if self.weight_decay and self.anchor_decay:
            raise ConfigError("weight_decay pulls toward zero, anchor_decay toward the base model: set one of them.")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed is an integer of 64 bits, 0 <= seed < 2**64, got {self.seed}.")
        for name, low in _AT_LEAST.items():
            value = getattr(self, name, None)
            if value is not None and value < low:
                raise ConfigError(f"{name} must be at least {low}, got {value}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is a probability, 0 < top_p <= 1, got {self.top_p}.")
        for rule in self.stop_at:
            parse_rule(rule)

    @property
    def reporters(self) -> list[str]:
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [n for n in names if n != "none"]

    def learning_part(self) -> dict[str, Any]:
        """The settings that the weights depend on: what a journal's header holds, and what a resume must not change."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("learning")}

    @classmethod
    def learning_defaults(cls) -> dict[str, Any]:
        """What a journal means that lacks a setting, being older than it: a new setting's default changes nothing."""
        return {
            f.name: f.default
            for f in dataclasses.fields(cls)
            if f.metadata.get("learning") and f.default is not dataclasses.MISSING
        }

    # What transformers' own callbacks (tensorboard, wandb...) ask of their arguments.

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """Values that a dashboard can show."""
        return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.to_dict().items()}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @property
    def logging_dir(self) -> str:
        return f"{self.output_dir}/logs"

    project: ClassVar[str] = "seedtune"
    process_index: ClassVar[int] = 0
    hub_private_repo: ClassVar[None] = None
    trackio_space_id: ClassVar[None] = None
    trackio_bucket_id: ClassVar[None] = None
    trackio_static_space_id: ClassVar[bool] = False


_AT_LEAST = {
    "max_steps": 1,
    "max_train_samples": 1,
    "max_eval_samples": 1,
    "rank": 1,
    "eval_steps": 0,
    "save_steps": 0,
    "drift_samples": 0,
    "save_total_limit": 1,
    "prompts_per_step": 1,
    "max_completion_length": 1,
    "temperature": 0,
    "top_k": 0,
    "generation_batch_size": 1,
    "chunk_size": 1,
    "generation_memory": 0,
    "reward_workers": 0,
    "reward_timeout": 0.001,
    "replicas": 1,
    "vllm_tensor_parallel_size": 1,
    "vllm_max_model_length": 1,
    "replica_cpus": 1,
    "replica_gpus": 0,
    "replica_timeout": 1,
    "drop_stragglers": 0,
    "threads": 1,
    "weight_decay": 0,
    "anchor_decay": 0,
    "learning_rate": 0,
}


#: What belongs to one engine, and what it is for the other.
VLLM_DEFAULTS: dict[str, Any] = {
    "vllm_gpu_memory_utilization": 0.9,
    "vllm_tensor_parallel_size": 1,
    "vllm_max_model_length": None,
}
