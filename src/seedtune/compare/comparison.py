"""What is compared: methods, each with its settings, on several seeds. A cell is one method, setting and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.run_config import RunConfig
from ..config.values import did_you_mean
from ..errors import ConfigError
from ..rewards.function import Reward, eval_functions, full_weights, reward_functions
from ..rewards.lookup import resolve as resolve_function
from ..training import factory
from ..training.recipe import data_and_rewards, resolve

#: Methods that need no `function`, and where they are.
METHODS = {
    "es": "seedtune.compare.es.train",
    "grpo": "seedtune.compare.rl.grpo",
    "dr_grpo": "seedtune.compare.rl.dr_grpo",
    "rloo": "seedtune.compare.rl.rloo",
}

#: What all methods give a reward function that asks for it; the rest only es does.
_GIVEN = frozenset({"environments"})
#: Trainers of TRL, and that of them which holds no conversations.
_TRL, _WITHOUT_TOOLS = ("grpo", "dr_grpo", "rloo"), "rloo"

#: Settings of 0.1.0, and their names now.
_RENAMED = {"generations": "completions"}
_OWN = ("completions", "evaluations", "seeds", "samples", "target", "methods")
#: What a comparison's configuration has besides settings of a run.
OWN_KEYS = (*_OWN, *_RENAMED)


@dataclass(frozen=True)
class Cell:
    """One training: `label` names method and setting, `function` does it."""

    label: str
    method: str
    function: str
    settings: Mapping[str, Any]
    seed: int

    @property
    def folder(self) -> str:
        plain = "".join(c if c.isalnum() or c in "-._" else "-" for c in self.label)
        return f"{plain}-seed{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """Each training generates `num_completions` completions and is evaluated `evaluations` times, evenly spaced;
    `samples` completions per prompt are for KL; `target` is a reward to reach, `gold_metrics` names the metrics that
    measure what is meant. `shared` holds for all cells: model, data, rewards, lengths (`given`: what of it was given);
    `settings` has all keys and values of the configuration.
    """

    shared: RunConfig
    given: Mapping[str, Any]
    num_completions: int
    evaluations: int
    samples: int
    target: float | None
    gold_metrics: tuple[str, ...]
    cells: tuple[Cell, ...]
    settings: Mapping[str, Any]


def comparison(values: Mapping[str, Any]) -> Comparison:
    """From the keys and values of a configuration: those of `Comparison`, and settings that all cells share.

    `methods` is `{name: settings}` or `{name: [settings, settings, ...]}`, where settings are the method's own (of
    `ESConfig`, of TRL's `GRPOConfig` or `RLOOConfig`); another method than es, grpo, dr_grpo and rloo has `function:
    file.py:name` among them. Raises ConfigError.
    """
    old = {now: values[before] for before, now in _RENAMED.items() if before in values}
    values = {**old, **{key: value for key, value in values.items() if key not in _RENAMED}}
    shared = {key: value for key, value in values.items() if key not in _OWN}
    if pushed := [key for key in shared if key == "push_to_hub" or key.startswith("hub_")]:
        raise ConfigError(f"{', '.join(pushed)}: a comparison is not pushed: use hf upload for what is to be kept.")
    args = resolve({}, shared)
    parts = data_and_rewards(args)
    tools, reward_funcs = factory.tools_and_rewards(
        parts["tools"], parts["environment_factory"], parts["reward_funcs"], args
    )
    rewards = reward_functions(reward_funcs, args.reward_args)
    gold_metrics = eval_functions(parts["eval_funcs"], rewards, args.reward_args)
    weights, count = full_weights(args.final_reward_weights, rewards), len(tools.rewarding if tools else ())
    functions, of_environments = rewards[: len(rewards) - count], weights[len(rewards) - count :]
    methods = values.get("methods") or {"es": {}, "grpo": {}}
    if not isinstance(methods, Mapping):
        raise ConfigError("methods must map names to settings, for example {es: {}, grpo: {learning_rate: 5e-6}}.")
    seeds = values.get("seeds", [1, 2])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ConfigError(f"seeds must be a list of whole numbers, for example [1, 2]; got {seeds!r}.")
    cells = []
    for name, given in methods.items():
        every = given if isinstance(given, list) else [given]
        if not all(settings is None or isinstance(settings, Mapping) for settings in every):
            raise ConfigError(f"methods: {name} must have settings (a mapping), or a list of them; got {given!r}.")
        sweep = [dict(s or {}) for s in every]
        for settings in sweep:
            function = settings.pop("function", METHODS.get(str(name)))
            if function is None:
                raise ConfigError(
                    f"there is no method {name!r}; built in are {', '.join(METHODS)}. A method of your own needs "
                    f"`function: file.py:name` (docs/guides/compare.md).{did_you_mean(name, METHODS)}"
                )
            resolve_function(function)  # errors are raised before anything runs
            if name == "es":
                resolve(shared, settings)
            else:
                _check_required(str(name), functions)
            if name in _TRL:
                _check_trl(str(name), of_environments, tools=tools is not None)
            label = _label(str(name), settings, sweep)
            cells += [Cell(label, str(name), str(function), settings, int(seed)) for seed in seeds]
    cells.sort(key=lambda cell: seeds.index(cell.seed))  # the first seed of every method first
    if len({cell.folder for cell in cells}) < len(cells):
        raise ConfigError("two cells are the same: a setting or a seed is given twice.")
    target = values.get("target")
    if not (target is None or type(target) in (int, float)):
        raise ConfigError(f"target must be a number, a reward to reach; got {target!r}.")
    return Comparison(
        args,
        shared,
        _whole("completions", values.get("completions", 1024)),
        _whole("evaluations", values.get("evaluations", 4)),
        _whole("samples", values.get("samples", 4)),
        None if target is None else float(target),
        tuple(metric.name for metric in gold_metrics),
        tuple(cells),
        values,
    )


def _check_required(name: str, functions: Sequence[Reward]) -> None:
    """Raises ConfigError for a reward function that the method cannot call."""
    if asking := [function for function in functions if function.requires - _GIVEN]:
        raise ConfigError(
            f"methods: {name} does not give reward function {asking[0].name!r} what it requires: "
            f"{', '.join(sorted(asking[0].requires - _GIVEN))}. Only es does: leave {name} out, or take another reward."
        )


def _check_trl(name: str, of_environments: Sequence[float], *, tools: bool) -> None:
    """Raises ConfigError for tools, or weights of environments' own rewards, that a trainer of TRL does not have."""
    if tools and name == _WITHOUT_TOOLS:
        raise ConfigError(f"methods: TRL's {name} calls no tools: leave it out; es, grpo and dr_grpo do.")
    if other := [weight for weight in of_environments if weight != 1]:
        raise ConfigError(
            f"reward_weights: TRL's {name} gives the reward of an environment the weight 1, not {other[0]:g}: set it "
            f"to 1, and the others in proportion; or leave {name} out."
        )


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ConfigError(f"{name} must be a whole number, at least 1; got {value!r}.")
    return value


def _label(name: str, settings: Mapping[str, Any], sweep: list[dict[str, Any]]) -> str:
    """The method and what tells this setting from the method's others."""
    differing = [k for k in settings if any(other.get(k) != settings[k] for other in sweep)]
    return " ".join([name, *(f"{k}={settings[k]}" for k in differing)])
