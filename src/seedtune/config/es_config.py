"""`ESConfig`: every setting of a run, frozen. Names that TRL and transformers have keep their names and meaning."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from ..errors import ConfigError
from ..es.aggregate import AGGREGATES
from ..es.schedule import SCHEDULES
from ..es.shaping import SHAPINGS
from ..es.update import OPTIMIZERS
from .auto import with_auto
from .checks import check_together
from .keys import check_inner_keys, checks_keys
from .reward_stages import stages_of
from .values import coerce, one_of

#: What transformers reports to, by its names.
REPORTERS = (
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune",
    "swanlab", "tensorboard", "trackio", "wandb",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Settings that stand together, in the YAML file and in --help. `affects_weights`: the trajectory of the weights
    depends on them.
    """

    name: str
    affects_weights: bool = True

    def __call__(
        self,
        help: str,
        default: Any = None,
        *,
        affects_weights: bool | None = None,
        choices: Sequence[str] = (),
        at_least: float | None = None,
        at_most: float | None = None,
        secret: bool = False,
    ) -> Any:
        """A field of the group, with its help text and which values it takes; a `secret` one is written nowhere."""
        affects = self.affects_weights if affects_weights is None else affects_weights
        about = {"group": self.name, "help": help, "affects_weights": affects, "secret": secret}
        limits = {"choices": choices, "at_least": at_least, "at_most": at_most}
        return field(default=default, repr=not secret, metadata={**about, **limits})


output, evolution, step = Group("Output", affects_weights=False), Group("Evolution strategies"), Group("Update")
generation, scoring = Group("Generation"), Group("Rewards", affects_weights=False)
replication, model = Group("Fleet", affects_weights=False), Group("Model", affects_weights=False)


#: Settings that a journal names only where they say something: it has the same bytes as before there were any.
_UNSAID = (
    "reward_args", "num_generations", "aggregate", "aggregate_k", "max_tool_calling_iterations", "tools",
    "environment_factory",
)  # fmt: skip
#: What a setting of these kinds is when nothing is said of it.
_EMPTY: dict[str, Callable[[], Any]] = {"list[str]": list, "dict[str, Any]": dict}


@checks_keys
@dataclass(frozen=True)
class ESConfig:
    """Settings of a run. Raises ConfigError for a value out of range, an unknown key, or a key of GRPO only."""

    output_dir: str = output("folder of the run", "out")
    max_steps: int = output("iterations", 100, at_least=1)
    eval_steps: int = output("evaluate the center every N iterations; 0: first and last", 10, at_least=0)
    drift_samples: int = output(
        "completions per prompt that an evaluation samples to measure KL from the base model (with the distance of the "
        "weights and a probe's perplexity); costs a copy of the base weights, on a CPU on disk; 0: none of it",
        1,
        at_least=0,
    )
    save_strategy: str = output(
        "steps: by save_steps; best: checkpoint-best whenever an evaluation finds a better center; no: only at the end",
        "steps",
        choices=("steps", "best", "no"),
    )
    save_steps: int = output("checkpoint every N iterations; 0: only at the end", 0, at_least=0)
    save_only_model: bool = output(
        "no state.safetensors in checkpoints: half the size; a resume repeats all updates", False
    )
    save_total_limit: int | None = output("keep the newest N checkpoints", at_least=1)
    load_best_model_at_end: bool = output(
        "hand back the best center that was evaluated, as checkpoint-best: the base model, where none was better", True
    )
    metric_for_best_model: str | None = output("what makes a center the best; default: eval/reward")
    greater_is_better: bool | None = output("whether more of it is better; default: yes, unless it is kl or a loss")
    log_completions: bool = output("write members' completions to completions/", False)
    log_unique_prompts: bool = output("of those, one per prompt", False)
    report_to: str | list[str] = output(
        "none, all (that are installed), or some of " + ", ".join(REPORTERS) + " (metrics.jsonl is always written)",
        "none",
    )
    run_name: str | None = output("name of the run for report_to")
    push_to_hub: bool = output("push the model to the Hub, by hub_strategy; the repository is made at the start", False)
    hub_model_id: str | None = output("name of the repository, or organization/name; default: that of output_dir")
    hub_private_repo: bool | None = output("whether it is private; default: as the organization has it, else public")
    hub_token: str | None = output("token that may write; default: that of hf auth login, or HF_TOKEN", secret=True)
    hub_strategy: str = output(
        "end; every_save: also whenever a checkpoint is saved; checkpoint, all_checkpoints: with the newest, or every, "
        "checkpoint and the journal, so that the run can be resumed from a clone",
        "every_save",
        choices=("end", "every_save", "checkpoint", "all_checkpoints"),
    )
    hub_revision: str | None = output("branch to push to; default: main")
    stop_at: list[str] = output("stop when one holds after an evaluation, e.g. 'eval/correct < 0.5'")

    population_size: int = evolution("members per iteration (N)", 30)
    sigma: float | str = evolution("noise scale, or auto: measured before the first iteration", 0.001)
    learning_rate: float | str | None = evolution(
        "alpha, or auto: as far as the measured reliability allows; default sigma / 2 (the paper's), for lowrank "
        "2 * sigma",
        at_least=0,
    )
    prompts_per_step: int | None = evolution(
        "prompts per iteration; default: the whole dataset, with prompts_per_member as many as get two answers",
        at_least=1,
    )
    prompts_per_member: int | None = evolution(
        "how many of them each member answers (a mirrored pair the same ones, another pair others); default: all",
        at_least=1,
    )
    curriculum: dict[str, Any] | None = evolution(
        "draw prompts by how often those of their level are solved: {column, success, low: 0.1, high: 0.6}"
    )
    antithetic: bool = evolution("members in mirrored pairs", False)
    fitness_shaping: str = evolution(
        "zscore, centered_rank, sum, group, none, or pairs (differences of mirrored pairs, at unit RMS)",
        "zscore",
        choices=tuple(SHAPINGS),
    )
    perturbation: str = evolution(
        "full (the paper), or lowrank (linear layers only, all members in one batch)",
        "full",
        choices=("full", "lowrank"),
    )
    rank: int = evolution("rank of lowrank noise", 1, at_least=1)
    lowrank_vectors: bool = evolution("lowrank: biases and norms move too, full-rank", False)
    lowrank_embeddings: bool = evolution(
        "lowrank: embeddings in scope move too, low-rank, and the head that is tied to one", False
    )
    scope: str = evolution("which weights move: all, linear, or a regex on names", "all")
    noise: str = evolution(
        "iid, or shared (restarts at every layer, as the paper's code)", "iid", choices=("iid", "shared")
    )
    restore: str = evolution("exact, or subtract (least memory, lossy)", "exact", choices=("exact", "subtract"))
    master_dtype: str = evolution(
        "the center's copy: float32, or bfloat16 (half the size, stochastic rounding)",
        "float32",
        choices=("float32", "bfloat16"),
    )
    seed: int = evolution("the run's seed", 42)

    guard: bool = step(
        "notice a run that diverges, return to its best center with at most half the step, three times at most",
        True,
        affects_weights=False,
    )
    max_kl: float = step(
        "guard: KL from the base model, in nats per token, at which a run counts as diverged",
        1.0,
        at_least=0,
        affects_weights=False,
    )
    lr_scheduler_type: str = step(
        "how the learning rate changes: " + ", ".join(SCHEDULES), "constant", choices=SCHEDULES
    )
    warmup_steps: int = step("iterations in which the learning rate rises, unless it is constant", 0, at_least=0)
    warmup_ratio: float = step("the same, as a share of max_steps", 0.0, at_least=0, at_most=1)
    sigma_schedule: str = step(
        "how sigma changes: constant, linear or cosine", "constant", choices=("constant", "linear", "cosine")
    )
    optimizer: str = step(f"{', '.join(OPTIMIZERS)}; sgd is the paper's", "sgd", choices=OPTIMIZERS)
    adam_beta1: float = step("momentum's or Adam's first decay", 0.9, at_least=0, at_most=1)
    adam_beta2: float = step("Adam's second decay", 0.999, at_least=0, at_most=1)
    adam_epsilon: float = step("Adam's epsilon", 1e-8)
    weight_decay: float = step("decoupled decay toward zero", 0.0, at_least=0)
    anchor_decay: float = step("decoupled decay toward the base model", 0.0, at_least=0)

    max_prompt_length: int | None = generation(
        "of longer prompts only so many tokens at the end are read; default: what the model's context holds", at_least=1
    )
    max_completion_length: int = generation("maximum new tokens", 256, at_least=1)
    temperature: float = generation("0: greedy, as in the paper", 0.0, at_least=0)
    num_generations: int = generation(
        "completions per member and prompt, also in evaluations of the center; more than 1 needs a temperature: for "
        "rewards that compare them, and for aggregate",
        1,
        at_least=1,
    )
    max_tool_calling_iterations: int | None = generation(
        "with tools: how often the model may call some before its conversation ends; default: until "
        "max_completion_length is used up",
        at_least=0,
    )
    top_p: float = generation("nucleus, when sampling", 1.0)
    top_k: int = generation("0: off", 0, at_least=0)
    min_p: float | None = generation(
        "when sampling: least probability of a token, as a share of the likeliest's", at_least=0, at_most=1
    )
    repetition_penalty: float = generation(
        "divides scores of tokens that were there before, in prompt or completion; 1: off", 1.0
    )
    stop_strings: list[str] = generation("a completion ends with the token that completes one of them")
    generation_kwargs: dict[str, Any] = generation(
        "the same settings by transformers' and vLLM's names; they win", affects_weights=False
    )
    generation_batch_size: int | None = generation("rows decoded in one batch; default: what fits", at_least=1)
    chunk_size: int | None = generation(
        "rows decoded as a unit, with continuous batching; default: twice the batch", at_least=1
    )
    generation_memory: float | None = generation(
        "GB for the KV cache; default: 1, or half of what a GPU has free", at_least=0, affects_weights=False
    )
    chat_template_kwargs: dict[str, Any] = generation("passed to the chat template")
    skip_special_tokens: bool = generation("leave special tokens out of what reward functions read", True)

    reward_weights: list[float] | list[dict[str, Any]] | None = scoring(
        "one weight per reward function; default 1; or stages {weights, until}, with until an iteration or a rule "
        "such as 'eval/exact > 0.3'",
        affects_weights=True,
    )
    reward_args: dict[str, Any] = scoring(
        "arguments of reward and eval functions by their names, e.g. {majority: {equivalence: math}}",
        affects_weights=True,
    )
    reward_workers: int | None = scoring(
        "scoring processes (with ray: actors); 0: in this process, no limit; default: one, with ray one per replica",
        at_least=0,
    )
    reward_batch: str = scoring(
        "what a reward function is called with: any (completions as they end, 16 or more, of any members and prompts), "
        "group (all completions of one prompt) or member (all of one member)",
        "any",
        choices=("any", "group", "member"),
        affects_weights=True,
    )
    aggregate: str = scoring(
        "how the rewards of num_generations completions become one: mean, max, pass_at_k (the best of aggregate_k, on "
        "average) or majority (that of the answer which most of them give)",
        "mean",
        choices=AGGREGATES,
        affects_weights=True,
    )
    aggregate_k: int | None = scoring("k of aggregate: pass_at_k", at_least=1, affects_weights=True)
    reward_timeout: float = scoring("seconds without a result before the run stops", 60.0, at_least=0.001)
    tool_timeout: float = scoring(
        "seconds that a tool or a method of an environment may take; then it has failed, which the model is told",
        30.0,
        at_least=0.001,
    )

    fleet: str = replication(
        "local, or ray: replicas in their own processes or machines", "local", choices=("local", "ray")
    )
    replicas: int = replication("with ray: how many", 1, at_least=1)
    address: str | None = replication(
        "with ray: the cluster to join (auto: the one on this machine); default: start one"
    )
    replica_cpus: int = replication("with ray: cores, and threads, of a replica", 1, at_least=1)
    replica_gpus: float = replication("with ray: GPUs of a replica", 0.0, at_least=0)
    replica_timeout: float = replication(
        "with ray: seconds without a result before a replica counts as lost", 600.0, at_least=1
    )
    share_model: bool = replication("with ray: send the model's files to nodes that do not see its folder, once", False)
    drop_stragglers: int = replication(
        "with ray: members that an iteration may leave out when it waits for slow replicas only; journaled",
        0,
        at_least=0,
    )

    engine: str = model(
        "what decodes: hf (transformers), or vllm (lowrank: scope all is linear)", "hf", choices=("hf", "vllm")
    )
    vllm_gpu_memory_utilization: float = model(
        "with vllm: share of the GPU's memory that it may take", 0.9, at_least=0, at_most=1
    )
    vllm_tensor_parallel_size: int = model("with vllm: GPUs (on a CPU: groups of cores) per model", 1, at_least=1)
    vllm_max_model_length: int | None = model(
        "with vllm: longest prompt with its completion; default: the model's own", at_least=1
    )
    model_revision: str | None = model("branch, tag or commit on the Hub", affects_weights=True)
    trust_remote_code: bool = model("run code that comes with the model", False)
    dtype: str = model(
        "precision of inference: bfloat16, float16 or float32",
        "bfloat16",
        choices=("bfloat16", "float16", "float32"),
        affects_weights=True,
    )
    attn_implementation: str | None = model(
        "attention of engine: hf: eager, sdpa, flash_attention_2, ...; default: transformers' choice, on a CPU with a "
        "faster step of decoding"
    )
    model_init_kwargs: dict[str, Any] = model("the same settings by the names that from_pretrained has; they win")
    device: str = model("auto, cpu, cuda or cuda:N", "auto")
    threads: int | None = model("CPU threads; default: all cores", at_least=1)

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if getattr(self, f.name) is None and f.type in _EMPTY:
                object.__setattr__(self, f.name, _EMPTY[str(f.type)]())
        self._check_each(self._coerce)
        for name, settings in PASSED_ON.items():
            self._take_over(name, settings)
        object.__setattr__(self, "output_dir", os.path.expanduser(self.output_dir))
        self._check_each(self._check_range)
        for name in self.reporters:
            one_of("report_to", name, ["all", *REPORTERS])
        check_together(self)
        if self.uses_lora_adapters and self.scope == "all":
            object.__setattr__(self, "scope", "linear")  # what vLLM's adapters can carry

    @property
    def uses_lora_adapters(self) -> bool:
        """Whether members are vLLM's adapters."""
        return self.engine == "vllm" and self.perturbation == "lowrank"

    @property
    def alpha(self) -> float:
        """The learning rate: as given, or sigma / 2 (Qiu et al.); for low rank 2 sigma, by experiment (LOG.md)."""
        if isinstance(self.learning_rate, float):
            return self.learning_rate
        return self.fixed_sigma * (2 if self.perturbation == "lowrank" else 0.5)

    @property
    def fixed_sigma(self) -> float:
        """Sigma as a number; 0 while `auto` is not measured yet."""
        return 0.0 if isinstance(self.sigma, str) else self.sigma

    @property
    def num_units(self) -> int:
        """Directions per iteration: pairs, or single members."""
        return self.population_size // 2 if self.antithetic else self.population_size

    @property
    def num_warmup_steps(self) -> int:
        """Iterations of warm-up, by whichever setting says so."""
        return self.warmup_steps or round(self.warmup_ratio * self.max_steps)

    @property
    def reward_stages(self) -> list[dict[str, Any]]:
        """`reward_weights` as stages, of which there is one where they do not change; its weights may be None."""
        return stages_of(self.reward_weights)

    @property
    def final_reward_weights(self) -> list[float] | None:
        """The weights at the end: those that evaluations go by."""
        weights: list[float] | None = self.reward_stages[-1]["weights"]
        return weights

    @property
    def is_scheduled(self) -> bool:
        """Whether a schedule that ends at max_steps says how large steps or sigma are."""
        return (self.lr_scheduler_type, self.sigma_schedule) != ("constant", "constant")

    def _check_each(self, check: Callable[[dataclasses.Field[Any]], None]) -> None:
        """Raises ConfigError for all settings that a check refuses, at once."""
        wrong = []
        for f in dataclasses.fields(self):
            try:
                check(f)
            except ConfigError as e:
                wrong.append(str(e))
        if wrong:
            raise ConfigError("\n".join(wrong))

    def _coerce(self, f: dataclasses.Field[Any]) -> None:
        value = getattr(self, f.name)
        if value is False and "no" in f.metadata["choices"]:  # as YAML reads it
            value = "no"
        if f.name == "report_to" and (value is None or value is False):
            value = "none"
        object.__setattr__(self, f.name, coerce(f.name, str(f.type), value))

    def _take_over(self, name: str, settings: Mapping[str, str]) -> None:
        """Move the values of a mapping, `generation_kwargs`, to the settings that they are. Raises ConfigError."""
        given = getattr(self, name)
        check_inner_keys(name, given, settings)
        kinds = {f.name: str(f.type) for f in dataclasses.fields(self)}
        for key, value in given.items():
            if settings[key] == "dtype":
                value = str(value).removeprefix("torch.")  # a torch.dtype, too
            object.__setattr__(self, settings[key], coerce(f"{name}: {key}", kinds[settings[key]], value))
        object.__setattr__(self, name, {})

    def _check_range(self, f: dataclasses.Field[Any]) -> None:
        value, low, high = getattr(self, f.name), f.metadata["at_least"], f.metadata["at_most"]
        if f.metadata["choices"]:
            one_of(f.name, value, f.metadata["choices"])
        if isinstance(value, str):
            return
        if value is not None and high is not None and not low <= value <= high:
            raise ConfigError(f"{f.name} must be between {low} and {high}, got {value}.")
        if value is not None and low is not None and value < low:
            raise ConfigError(f"{f.name} must be at least {low}, got {value}.")

    @property
    def reporters(self) -> list[str]:
        """`report_to` as a list; empty for none."""
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [n for n in names if n != "none"]

    def trajectory_config(self) -> dict[str, Any]:
        """The settings that the weights depend on: what a journal's header holds, and what a resume must not change."""
        defaults = self.trajectory_defaults()
        found = {n: getattr(self, n) for n in defaults if n not in _UNSAID or getattr(self, n) != defaults[n]}
        return {**found, "max_steps": self.max_steps} if self.is_scheduled else found

    @classmethod
    def auto(cls, **settings: Any) -> Self:
        """These settings and, where they say nothing of members and steps, those of a run that measures its steps
        itself: what `seedtune train` does. Raises ConfigError.
        """
        return cls(**with_auto(settings))

    @classmethod
    def trajectory_defaults(cls) -> dict[str, Any]:
        """What a journal means that lacks a setting, being older than it: a new setting's default changes nothing."""
        fields = [f for f in dataclasses.fields(cls) if f.metadata["affects_weights"]]
        return {f.name: _EMPTY[str(f.type)]() if f.type in _EMPTY else f.default for f in fields}

    # What transformers' own callbacks (tensorboard, wandb...) ask of their arguments.

    def to_dict(self) -> dict[str, Any]:
        """Values by name; instead of those of secrets, their name, as transformers does."""
        secrets = {f.name: f"<{f.name.upper()}>" for f in dataclasses.fields(self) if f.metadata["secret"]}
        return {k: secrets.get(k, v) if v is not None else None for k, v in dataclasses.asdict(self).items()}

    def to_sanitized_dict(self) -> dict[str, Any]:
        """Values that a dashboard can show."""
        return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.to_dict().items()}

    def to_json_string(self) -> str:
        """`to_dict` as JSON, as transformers has it."""
        return json.dumps(self.to_dict(), indent=2)

    @property
    def logging_dir(self) -> str:
        """The folder of trackers that write files."""
        return f"{self.output_dir}/logs"

    project: ClassVar[str] = "seedtune"
    process_index: ClassVar[int] = 0
    trackio_space_id: ClassVar[None] = None
    trackio_bucket_id: ClassVar[None] = None
    trackio_static_space_id: ClassVar[bool] = False


#: Settings that hold others, by the names that those have for transformers and vLLM.
PASSED_ON: dict[str, dict[str, str]] = {
    "generation_kwargs": {
        **{n: n for n in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop_strings")},
        "stop": "stop_strings",
        "max_new_tokens": "max_completion_length",
        "max_tokens": "max_completion_length",
    },
    "model_init_kwargs": {
        "revision": "model_revision",
        "trust_remote_code": "trust_remote_code",
        "dtype": "dtype",
        "torch_dtype": "dtype",
        "attn_implementation": "attn_implementation",
    },
}


#: Settings of a run that neither measures its distance from the base model nor returns to it.
KEEPS_NO_BASE: dict[str, Any] = {"drift_samples": 0, "guard": False, "load_best_model_at_end": False}

#: Settings of vLLM, and their defaults.
VLLM_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(ESConfig) if f.name.startswith("vllm_")}
