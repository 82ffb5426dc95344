"""From settings to parts: the engine, the update rule, the reward functions, the callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import DefaultFlowCallback

from .config import ESConfig
from .engines import models
from .engines.hf import DTYPES, HFEngine
from .errors import ConfigError, RewardError
from .es.update import UpdateRule
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


def on_top(engine: HFEngine, args: ESConfig) -> HFEngine:
    """A replica whose base is another's centre, in full precision; it saves as the other would."""
    for name, tensor in engine.centre_in_full().items():
        engine.model.get_parameter(name).data = tensor
    for module in engine.model.modules():
        module.__dict__.pop("forward", None)  # low-rank members stood in for it
    engine.model.float()
    made = _engine(engine.model, engine.tokenizer, engine.name, args)
    made.saves_as(engine)
    return made


def _engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, args: ESConfig) -> HFEngine:
    return HFEngine(
        model,
        tokenizer,
        name=name,
        seed=args.seed,
        sigma=args.fixed_sigma,
        dtype=args.dtype,
        device=args.device,
        scope=args.scope,
        noise=args.noise,
        restore=args.restore,
        rank=args.rank if args.perturbation == "lowrank" else None,
        lowrank_vectors=args.lowrank_vectors,
        rule=update_rule(args),
        threads=args.threads,
        chat_template_kwargs=args.chat_template_kwargs,
        generation_memory=args.generation_memory,
        keep_base=args.drift_samples > 0 and args.restore == "exact",
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
