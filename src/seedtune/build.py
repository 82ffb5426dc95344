"""From settings to parts: the engine, the update rule, the reward functions, the callbacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import DefaultFlowCallback

from .config import VLLM_DEFAULTS, ESConfig
from .engines import models
from .engines.base import Engine, Sampling
from .engines.hf import DTYPES, MOST_ROWS, HFEngine
from .errors import ConfigError, RewardError
from .es.population import Population
from .es.update import UpdateRule
from .fleet.cluster import Cluster
from .fleet.local import LocalFleet
from .perturb.quantised import unquantise
from .tasks.reward import Reward

RewardFuncs = str | Callable[..., Any] | Sequence[str | Callable[..., Any]]


def engine(model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, args: ESConfig) -> HFEngine:
    """A replica of a model, given by name or as an object. Raises ModelError."""
    if isinstance(model, str):
        name = model
        loaded, own = models.load(
            name,
            revision=args.model_revision,
            trust_remote_code=args.trust_remote_code,
            dtype=DTYPES[args.dtype],
        )
    else:
        name, loaded = str(getattr(model.config, "_name_or_path", "") or "model"), model
        own = tokenizer or models.tokenizer_of(name)
    return _engine(loaded, tokenizer or own, name, args)


def driver(model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, args: ESConfig) -> Engine:
    """The trainer's own replica. Beside a fleet it only updates, saves and measures, and takes no GPU."""
    if args.fleet == "ray":
        device = "cpu" if args.replica_gpus else args.device
        args = dataclasses.replace(args, engine="hf", device=device, **VLLM_DEFAULTS)
    return replica(model, tokenizer, args)


def rows_at_once(own: Engine, tokens: int, args: ESConfig) -> int:
    """Rows of `tokens` tokens that a replica decodes together, unless the settings say. The driver of a fleet cannot
    know what its replicas' GPUs hold: a replica that cannot hold these takes half of them. Raises ConfigError.
    """
    if args.generation_batch_size:
        return args.generation_batch_size
    if args.fleet == "ray" and args.replica_gpus:
        return MOST_ROWS["cuda"]
    return own.rows_that_fit(tokens)


def replica(model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, args: ESConfig) -> Engine:
    """A replica on the engine that the settings name. Raises ConfigError, ModelError."""
    if args.engine == "hf":
        return engine(model, tokenizer, args)
    if not isinstance(model, str):
        raise ConfigError("engine: vllm loads the model itself: give its name or folder.")
    from .engines.vllm import VLLMEngine

    load = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code, "dtype": args.dtype}
    how = {name: value for name, value in _settings(args).items() if name != "device"}
    return VLLMEngine(
        model,
        tokenizer,
        device=args.device,
        load=load,
        how=how,
        members=args.population_size,
        rows=args.generation_batch_size,
        memory=args.vllm_gpu_memory_utilization,
        devices=args.vllm_tensor_parallel_size,
        context=args.vllm_max_model_length,
    )


def on_top(engine: HFEngine, args: ESConfig) -> HFEngine:
    """A replica whose base is another's centre, in full precision; it saves as the other would. Raises ModelError."""
    full = engine.centre_in_full()
    unquantise(engine.model)
    for name, tensor in full.items():
        engine.model.get_parameter(name).data = tensor
    for module in engine.model.modules():
        module.__dict__.pop("forward", None)  # low-rank members stood in for it
    engine.model.float()
    made = _engine(engine.model, engine.tokenizer, engine.name, args)
    made.saves_as(engine)
    return made


def _engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, args: ESConfig) -> HFEngine:
    return HFEngine(model, tokenizer, name=name, **_settings(args))


def _settings(args: ESConfig) -> dict[str, Any]:
    """What an engine takes of them."""
    return {
        "seed": args.seed,
        "sigma": args.fixed_sigma,
        "dtype": args.dtype,
        "device": args.device,
        "scope": args.scope,
        "noise": args.noise,
        "restore": args.restore,
        "master": args.master_dtype,
        "rank": args.rank if args.perturbation == "lowrank" else None,
        "lowrank_vectors": args.lowrank_vectors,
        "lowrank_embeddings": args.lowrank_embeddings,
        "rule": update_rule(args),
        "threads": args.threads,
        "chat_template_kwargs": args.chat_template_kwargs,
        "generation_memory": args.generation_memory,
        "keep_base": args.drift_samples > 0 and args.restore == "exact",
    }


def fleet(
    own: Engine,
    model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    args: ESConfig,
    sampling: Sampling,
    note: Callable[[str], None],
) -> LocalFleet:
    """Who answers: `own` itself, or replicas on a Ray cluster. Raises ConfigError, FleetError."""
    population, size = Population(args.population_size, args.antithetic), args.chunk_size or 1
    if args.fleet == "local":
        unused = [n for n in ("address", "share_model", "drop_stragglers") if getattr(args, n)]
        if unused or args.replicas > 1:
            note(f"{', '.join(unused or ['replicas'])}: nothing comes of it without fleet: ray.")
        return LocalFleet(own, population, sampling, chunk_size=size, seed=args.seed)
    if not isinstance(model, str):
        raise ConfigError("fleet: ray loads the model on every node: give its name or a folder that all nodes see.")
    address = None if args.address == "local" else args.address
    cluster = Cluster(args.replicas, address, args.replica_cpus, args.replica_gpus, args.replica_timeout)
    cluster.secure()
    if args.reward_workers is None and args.reward_timeout >= args.replica_timeout:
        note(
            f"reward_timeout ({args.reward_timeout:g} s) is not shorter than replica_timeout ({args.replica_timeout:g} "
            "s): a replica whose reward function hangs will count as lost before it can say so."
        )
    try:
        from .fleet.ray import RayFleet
    except ImportError as e:
        raise ConfigError('fleet: ray needs Ray. In a clone of Seedtune: pip install ".[ray]".') from e
    theirs = dataclasses.replace(args, threads=args.replica_cpus, drift_samples=0, sigma=args.fixed_sigma or 1.0)
    return RayFleet(
        own,
        population,
        sampling,
        chunk_size=size,
        seed=args.seed,
        cluster=cluster,
        make=partial(replica, tokenizer=tokenizer, args=theirs),
        model=model,
        files=models.files(model) if args.share_model else None,
        spare=args.drop_stragglers,
        note=note,
    )


def update_rule(args: ESConfig) -> UpdateRule:
    """The update rule that the settings describe."""
    return UpdateRule(
        args.optimizer,
        args.adam_beta1,
        args.adam_beta2,
        args.adam_epsilon,
        args.weight_decay or args.anchor_decay,
        anchored=args.anchor_decay > 0,
    )


def rewards(funcs: RewardFuncs | None) -> list[Reward]:
    """Reward functions, each found and callable. Raises RewardError."""
    if funcs is None:
        return []
    given = [funcs] if isinstance(funcs, str) or callable(funcs) else list(funcs)
    made = [Reward(f) for f in given]
    for reward in made:
        if not callable(reward.function):
            raise RewardError(f"a reward function is a callable, or a text that names one; got {reward.source!r}.")
    names = [reward.name for reward in made]
    for name in names:
        if names.count(name) > 1:
            raise RewardError(f"two reward functions are called {name!r}: rename one, so that metrics tell them apart.")
    return made


def callbacks(args: ESConfig, given: Sequence[TrainerCallback] | None) -> list[TrainerCallback]:
    """The user's callbacks behind those of `report_to` (transformers' own). Raises ConfigError when one is missing."""
    made: list[TrainerCallback] = [_OwnFlow()]
    for name in args.reporters:
        try:
            made.append(get_reporting_integration_callbacks([name])[0]())
        except (ImportError, RuntimeError, ValueError) as e:
            raise ConfigError(f"report_to: {name} cannot be used: {e} Try `pip install {name}`.") from e
    return [*made, *(given or [])]


class _OwnFlow(DefaultFlowCallback):
    """transformers wants a flow callback; here the trainer itself says when to evaluate and to save."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Nothing: `ESTrainer` sets the control before."""

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Nothing: there are no epochs."""
