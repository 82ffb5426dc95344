"""From settings to parts: specs, the engine, the fleet, the update rule."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.es_config import KEEPS_NO_BASE, VLLM_DEFAULTS, ESConfig
from ..data.prompts import Prompts
from ..distributed.cluster import Cluster
from ..engines import adapters, loading
from ..engines.base import NOT_OF_VLLM, Engine, Sampling
from ..engines.hf.engine import MOST_ROWS, HFEngine, release
from ..engines.specs import ModelSpec, RuntimeSpec
from ..engines.tokenization import Texts, of_texts
from ..errors import ConfigError
from ..es.aggregate import Aggregate
from ..es.population import Population
from ..es.update import UpdateRule
from ..evaluation.evaluate import EvalSpec
from ..perturb.bitsandbytes_layers import dequantize_model
from ..perturb.perturbation import INFERENCE_ONLY, PerturbationSpec
from ..perturb.selection import check_scope
from ..rewards.environment import EnvironmentReward
from ..rewards.function import Reward, RewardFuncs, with_more
from ..rollout.fleet import Fleet, LocalFleet
from ..rollout.rollout_func import RolloutFunc
from ..rollout.runner import RolloutSpec
from ..tools.toolset import ToolSet
from ..utils.paths import AnyPath

log = logging.getLogger(__name__)
S = TypeVar("S", ModelSpec, PerturbationSpec, RuntimeSpec, EvalSpec, Sampling, RolloutSpec)


def _spec(cls: type[S], args: ESConfig, **more: Any) -> S:
    """The settings that `cls` has, under the same names; and `more`."""
    names = {f.name for f in dataclasses.fields(args)} & {f.name for f in dataclasses.fields(cls)} - set(more)
    return cls(**{name: getattr(args, name) for name in names}, **more)


def engine_specs(name: str, args: ESConfig) -> tuple[ModelSpec, PerturbationSpec, RuntimeSpec]:
    """What an engine is made of; `name`: of the model."""
    keep = args.restore == "exact" and (args.drift_samples > 0 or args.guard or args.load_best_model_at_end)
    perturbation = _spec(PerturbationSpec, args, sigma=args.fixed_sigma, keep_base=keep, rule=update_rule(args))
    return _spec(ModelSpec, args, model_name_or_path=name), perturbation, _spec(RuntimeSpec, args)


def sampling(args: ESConfig, rows_at_once: int | None) -> Sampling:
    """How the settings say to decode. Says which of them do nothing."""
    unused = [n for n in ("top_p", "top_k", "min_p") if getattr(args, n) != getattr(ESConfig, n)]
    if unused and args.temperature == 0:
        log.warning("%s: ignored: only applies when sampling, and temperature is 0 (greedy).", ", ".join(unused))
    return _spec(Sampling, args, rows_at_once=rows_at_once)


def rollout_spec(
    args: ESConfig,
    prompts_per_member: int | None = None,
    tools: ToolSet | None = None,
    rollout_func: RolloutFunc | None = None,
) -> RolloutSpec:
    """How members complete prompts; `prompts_per_member`: all, unless it is given; `tools`: what they may call."""
    return _spec(
        RolloutSpec,
        args,
        sampling=sampling(args, args.generation_batch_size),
        chunk_size=args.chunk_size or 1,
        prompts_per_member=prompts_per_member,
        tools=tools,
        rollout_func=rollout_func,
        aggregate=Aggregate(args.aggregate, args.aggregate_k or 1),
    )


def check_asked(rewards: Sequence[Reward], engine: Engine, args: ESConfig) -> None:
    """Raise ConfigError for a function that asks for what the decode loop cannot say of tokens."""
    for reward in rewards:
        asks = sorted(reward.asks - {"group"})
        if asks and isinstance(engine, HFEngine) and engine.decoder is None:
            raise ConfigError(
                f"reward function {reward.name!r} asks for {asks[0]}, which needs a model that caches keys and values; "
                "this one does not."
            )
        if "completion_kl_uniform" in asks and args.engine == "vllm":
            raise ConfigError(
                f"reward function {reward.name!r} asks for completion_kl_uniform, which needs the whole distribution "
                "of each token; vLLM gives the probability of the chosen one alone: use engine: hf."
            )


def eval_spec(args: ESConfig, **more: Any) -> EvalSpec:
    """What an evaluation takes of the settings; `more`: samples, ks, success."""
    return _spec(EvalSpec, args, reward_weights=args.final_reward_weights, **more)


def update_rule(args: ESConfig) -> UpdateRule:
    """The update rule that the settings describe."""
    betas, decay = (args.adam_beta1, args.adam_beta2), args.weight_decay or args.anchor_decay
    return UpdateRule(args.optimizer, *betas, args.adam_epsilon, decay, anchored=args.anchor_decay > 0)


def hf_engine(
    model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    args: ESConfig,
    perturbation: PerturbationSpec | None = None,
    *,
    frozen: Collection[str] = (),
    decodes: bool = True,
) -> HFEngine:
    """A replica on transformers of a model, given by name or as an object. `frozen`: parameters that stay as they are,
    besides those without gradients; `decodes` as `HFEngine`. Raises ModelError.
    """
    if isinstance(model, str):
        spec, usual, runtime = engine_specs(model, args)
        loaded, own = loading.load(spec, tokenizer)
        for name in frozen:
            loaded.get_parameter(name).requires_grad_(False)
        return HFEngine(loaded, own, spec, perturbation or usual, runtime, decodes=decodes)
    plain = loading.as_plain_model(model)
    release(plain)
    name = str(getattr(plain.config, "_name_or_path", "") or "model")
    tokenizer = tokenizer or loading.load_tokenizer(name)
    changed = loading.is_changed(plain, name)
    spec, usual, runtime = engine_specs(f"{name} (changed)" if changed else name, args)
    return HFEngine(plain, tokenizer, spec, perturbation or usual, runtime, changed=changed, decodes=decodes)


def check_without_weights(
    model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, args: ESConfig, prompts: Prompts
) -> int | None:
    """Check the scope, and tokenize the prompts, before a named model's weights are read. Returns the tokens of the
    longest row, or None where only the engine can tell. Raises ConfigError, DataError.
    """
    if not isinstance(model, str):
        return None
    spec, perturbation, _ = engine_specs(model, args)
    if (found := loading.outline(spec)) is None:
        return None
    skeleton, own = found
    check_scope(skeleton, perturbation.scope)
    texts = Texts(tokenizer or own, skeleton, spec.chat_template_kwargs, **of_texts(spec))
    longest = prompts.encode(texts, args.max_completion_length)
    return longest if args.engine == "hf" else None  # vLLM may have a shorter context


def inference_engine(model: AnyPath, args: ESConfig) -> HFEngine:
    """An engine that only generates and scores, whatever the settings say of training. Raises ModelError."""
    name = os.fspath(model)
    log.info("Loading %s.", name)
    return hf_engine(name, None, args, INFERENCE_ONLY)


def engine(model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, args: ESConfig) -> Engine:
    """A replica on the engine that the settings name. Raises ConfigError, ModelError."""
    if args.engine == "hf":
        return hf_engine(model, tokenizer, args)
    if not isinstance(model, str):
        raise ConfigError("engine: vllm loads the model itself: give its name or folder.")
    if adapters.read(model):
        raise ConfigError(
            f"engine: vllm loads the model itself, and {model!r} holds an adapter: merge it into its base "
            "(merge_and_unload of PEFT, save_pretrained), or use engine: hf."
        )
    from ..engines.vllm.engine import VLLMEngine

    return VLLMEngine(*engine_specs(model, args), tokenizer, population_size=args.population_size)


def driver(model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, args: ESConfig) -> Engine:
    """The trainer's own replica. Beside a fleet it only updates, saves and measures, and takes no GPU."""
    if args.fleet == "ray":
        device = "cpu" if args.replica_gpus else args.device
        args = dataclasses.replace(args, engine="hf", device=device, **VLLM_DEFAULTS)
    return engine(model, tokenizer, args)


def rows_at_once(own: Engine, tokens: int, args: ESConfig) -> int:
    """Rows of `tokens` tokens that a replica decodes together, unless the settings say. The driver of a fleet cannot
    know what its replicas' GPUs hold: a replica that cannot hold these takes half of them. Raises ConfigError.
    """
    if args.generation_batch_size:
        return args.generation_batch_size
    if args.fleet == "ray" and args.replica_gpus:
        return MOST_ROWS["cuda"]
    return own.rows_that_fit(tokens)


def stack(below: HFEngine, args: ESConfig) -> HFEngine:
    """An engine whose base is the center of the one below, in full precision, and which saves as that one would: it
    takes over its model. Raises ModelError.
    """
    full = below.center_in_full()
    below.detach()
    dequantize_model(below.model)
    for name, tensor in full.items():
        below.model.get_parameter(name).data = tensor
    below.model.float()
    made = HFEngine(below.model, below.tokenizer, *engine_specs(below.name, args), decodes=False)
    made.saves_as(below)
    return made


def fleet(
    own: Engine,
    model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    args: ESConfig,
    tools: ToolSet | None = None,
    rollout_func: RolloutFunc | None = None,
) -> Fleet:
    """Who decodes: `own` itself, or replicas on a Ray cluster. Raises ConfigError, FleetError."""
    population = Population(args.population_size, args.antithetic)
    spec = rollout_spec(args, args.prompts_per_member, tools, rollout_func)
    if args.fleet == "local":
        unused = [n for n in ("address", "share_model", "drop_stragglers") if getattr(args, n)]
        if unused or args.replicas > 1:
            log.warning("%s: ignored: only applies with fleet: ray.", ", ".join(unused or ["replicas"]))
        return LocalFleet(own, population, spec)
    if rollout_func is not None:
        raise ConfigError("rollout_func runs in this process: with fleet: ray, give tools or an environment_factory.")
    if not isinstance(model, str):
        raise ConfigError("fleet: ray loads the model on every node: give its name or a folder that all nodes see.")
    address = None if args.address == "local" else args.address
    cluster = Cluster(args.replicas, address, args.replica_cpus, args.replica_gpus, args.replica_timeout)
    cluster.secure()
    if args.reward_workers is None and args.reward_timeout >= args.replica_timeout:
        log.warning(
            f"reward_timeout ({args.reward_timeout:g} s) is not shorter than replica_timeout ({args.replica_timeout:g} "
            "s): a replica whose reward function hangs will count as lost before it can say so."
        )
    try:
        from ..distributed.ray_fleet import RayFleet
    except ImportError as e:
        raise ConfigError('fleet: ray needs Ray: pip install ray (in a clone: pip install ".[ray]").') from e
    theirs = dataclasses.replace(
        args, threads=args.replica_cpus, sigma=args.fixed_sigma or 1.0, hub_token=None, **KEEPS_NO_BASE
    )
    return RayFleet(
        own,
        population,
        spec,
        cluster=cluster,
        make=partial(engine, tokenizer=tokenizer, args=theirs),
        model=model,
        files=loading.model_files(model) if args.share_model else None,
        drop_stragglers=args.drop_stragglers,
    )


def tools_and_rewards(
    tools: Any, environment_factory: Any, reward_funcs: RewardFuncs | None, args: ESConfig
) -> tuple[ToolSet | None, RewardFuncs | None]:
    """What the model may call (None: nothing), and the reward functions, with those of environments that give rewards.
    Raises ConfigError.
    """
    found = _tool_set(tools, environment_factory, args)
    of_environments = [EnvironmentReward(kind) for kind in found.rewarding] if found else []
    return found, with_more(reward_funcs, of_environments)


def _tool_set(tools: Any, environment_factory: Any, args: ESConfig) -> ToolSet | None:
    found = ToolSet.of(tools, environment_factory, in_process=args.reward_workers == 0, by_value=args.fleet == "ray")
    if found is None:
        unused = [
            n for n in ("max_tool_calling_iterations", "tool_timeout") if getattr(args, n) != getattr(ESConfig, n)
        ]
        if unused:
            log.warning("%s: ignored: only applies with tools or environment_factory.", ", ".join(unused))
        return None
    if args.fleet == "ray" and args.reward_workers == 0:
        raise ConfigError("with fleet: ray, tools run beside the replicas, in processes: leave reward_workers: 0 out.")
    return found


def check_reading(args: ESConfig, reading: Sequence[Reward], tools: ToolSet | None = None) -> None:
    """Where rewards are computed from given texts (by the functions `reading`): raises ConfigError for settings that
    only decoding has and that would mean something else, and for what the engine does not give; says which settings do
    nothing.
    """
    if not reading:
        return
    if tools is not None:
        raise ConfigError("tools are called between turns that are decoded, and this reward reads given completions.")
    asked = [(reward.name, name) for reward in reading for name in sorted(reward.outputs & NOT_OF_VLLM)]
    if args.engine == "vllm" and asked:
        raise ConfigError(
            f"reward function {asked[0][0]!r} asks for the {asked[0][1]} of given texts, and vLLM gives "
            "log-probabilities alone: use engine: hf."
        )
    if args.reward_batch != "any":
        raise ConfigError(
            f"reward_batch: {args.reward_batch}: rewards of given texts are computed where these are read, a few rows "
            "at a time: leave it out."
        )
    if args.num_generations > 1:
        raise ConfigError(
            f"num_generations: {args.num_generations}: the dataset's own completions are read, and none are drawn: "
            "leave it out."
        )
    names = (
        "max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop_strings",
        "reward_workers",
    )  # fmt: skip
    defaults = ESConfig()
    if unused := [name for name in names if getattr(args, name) != getattr(defaults, name)]:
        log.warning("%s: ignored: the dataset's own completions are read, and nothing is decoded.", ", ".join(unused))


#: How many times smaller than sigma a learning rate is when it was probably meant for gradients.
_FAR_BELOW = 50


def note_unused(args: ESConfig) -> None:
    """Say which settings do nothing beside the others."""
    of_hub = ("hub_model_id", "hub_private_repo", "hub_token", "hub_revision", "hub_strategy")
    for needed, names in (("push_to_hub", of_hub), ("log_completions", ("log_unique_prompts",))):
        unused = [name for name in names if getattr(args, name) != getattr(ESConfig, name)]
        if unused and not getattr(args, needed):
            log.warning("%s: ignored: only applies with %s: true.", ", ".join(unused), needed)
    if isinstance(args.learning_rate, float) and 0 < args.learning_rate < args.fixed_sigma / _FAR_BELOW:
        log.warning(
            "learning_rate %g is far below sigma (%g), so the center will hardly move. Is it one of gradients? It "
            "says nothing about a step of ES: leave it out, and it is %s sigma.",
            args.learning_rate, args.fixed_sigma, "2" if args.perturbation == "lowrank" else "half of",
        )  # fmt: skip
