"""All that `seedtune eval` measures of one model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.prompts import PromptBatch, Prompts
from ..engines.base import Engine, Sampling
from ..errors import ConfigError, RewardError
from ..es.aggregate import MEAN, best_of_k
from ..es.population import CENTER
from ..rewards.function import Reward, RewardFuncs, eval_functions, full_weights, reward_functions
from ..rewards.outputs import columns_read
from ..rewards.scorer import Scorer
from ..rollout.rollouts import Rollouts
from ..rollout.runner import LocalExecutor, OnRows, RolloutRunner, RolloutSpec
from ..tools.toolset import ToolSet
from . import statistics
from .calibration import calibration_metrics
from .diversity import diversity_metrics
from .kl import divergence
from .perplexity import perplexity
from .statistics import Estimate, Floats

#: Why samples, and what follows from them, are refused where given completions are read.
NOTHING_DRAWN = (
    "the dataset's own completions are read, and none are drawn, so there are no samples and no pass@k: leave it out. "
    "For what the model writes, give reward functions that judge completions."
)


def noop(*_: Any) -> None:
    """For those who do not want to know."""


@dataclass(frozen=True)
class EvalSpec:
    """Settings of an evaluation, by their names (see `ESConfig`); `reward_timeout` and `tool_timeout` are in seconds.
    Besides greedy completions, `samples` per prompt are drawn at `temperature`; a sample passes when its gold metric
    (the first function that is not a reward) is at least 1 or, where `success` is given, when its reward is at least
    that; `ks` are the k of pass@k.
    """

    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 42
    generation_batch_size: int | None = None
    reward_weights: list[float] | None = None
    reward_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reward_workers: int | None = None
    reward_timeout: float = 60.0
    reward_batch: str = "any"
    samples: int = 0
    ks: Sequence[int] = ()
    success: float | None = None
    max_tool_calling_iterations: int | None = None
    tool_timeout: float = 30.0


@dataclass(frozen=True)
class Evaluation:
    """Estimates by name, and rows of the greedy and of the sampled completions."""

    estimates: dict[str, Estimate]
    greedy: list[dict[str, Any]]
    sampled: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The estimates as files hold them, by name."""
        metrics = {name: e.to_json() for name, e in self.estimates.items()}
        return {"metrics": metrics, "completions": self.greedy, "samples": self.sampled}


def evaluate(
    engine: Engine,
    spec: EvalSpec,
    rows: Any,
    reward_funcs: RewardFuncs,
    eval_funcs: RewardFuncs | None = None,
    *,
    base: Engine | None = None,
    on_rows: OnRows = noop,
    on_stage: Callable[[str], None] = noop,
    tools: ToolSet | None = None,
) -> Evaluation:
    """Rewards and gold metrics of greedy completions with intervals over prompts; with `spec.samples`, the same of
    samples, pass@k, and KL from `base` (an engine that holds it; None: no KL); perplexity of the probe. Where rewards
    are computed from given completions these are read: nothing is decoded, nothing is sampled, and `loss` is theirs.
    With `tools` completions are conversations; then there is no KL.

    Raises ConfigError, DataError or RewardError, as training does; ConfigError for samples of what is read.
    """
    rewards = reward_functions(reward_funcs, spec.reward_args)
    gold_metrics = eval_functions(eval_funcs, rewards, spec.reward_args)
    if not rewards:
        raise RewardError("reward_funcs is empty: there is nothing to measure. Give at least one function.")
    weights = full_weights(spec.reward_weights, rewards)
    texts = columns_read([*rewards, *gold_metrics])
    values = {"samples": spec.samples or None, "ks": spec.ks or None, "success": spec.success}
    if texts and (useless := [name for name, value in values.items() if value is not None]):
        raise ConfigError(f"{', '.join(useless)}: {NOTHING_DRAWN}")
    prompts = Prompts(rows, rows, None, texts=texts, tools=tools)
    prompts.check_columns(rewards, gold_metrics, spec.samples or 1)
    longest = prompts.encode(engine, spec.max_completion_length)
    at_once = spec.generation_batch_size or engine.rows_that_fit(longest)
    sampling = Sampling(
        spec.max_completion_length,
        spec.temperature,
        spec.top_p,
        spec.top_k,
        rows_at_once=at_once,
        min_p=spec.min_p,
        repetition_penalty=spec.repetition_penalty,
    )
    greedy_sampling = dataclasses.replace(sampling, temperature=0.0)

    def rollout(batch: PromptBatch, sampling: Sampling, samples: int = 1) -> Rollouts:
        how = RolloutSpec(
            sampling,
            2 * at_once,
            spec.seed,
            reward_batch=spec.reward_batch,
            num_generations=samples,
            tools=tools,
            max_tool_calling_iterations=spec.max_tool_calling_iterations,
            tool_timeout=spec.tool_timeout,
            reward_workers=spec.reward_workers,
        )
        with closing(LocalExecutor(engine, how)) as executor:
            runner = RolloutRunner(executor, how, mixes_members=engine.mixes_members)
            return runner.run([CENTER], batch, scorer, 0, {"global_step": 0, "max_steps": 0}, on_rows)

    sampled_rows: list[dict[str, Any]] = []
    with Scorer([*rewards, *gold_metrics], workers=spec.reward_workers, timeout=spec.reward_timeout) as scorer:
        on_stage("given completions" if texts else "greedy completions")
        batch = prompts.evaluation()
        greedy = rollout(batch, greedy_sampling)
        found = _means(greedy, weights, "") | _of_answers(greedy.rows(weights), rewards)
        if texts:
            read = [-np.array(completion.logprobs) for _, _, completion in greedy.answered()]
            found["loss"] = statistics.per_token(read)
        if spec.samples:
            on_stage(f"{spec.samples} samples per prompt")
            sampled = rollout(batch, sampling, spec.samples)
            sampled_rows = sampled.rows(weights)
            found |= _means(sampled, weights, "sampled/")
            of_samples = _of_answers(sampled_rows, rewards).items()  # of one prompt they are not independent
            found |= {f"sampled/{name}": dataclasses.replace(e, half=math.nan) for name, e in of_samples}
            found |= _passes(sampled, weights, spec)
            if base is not None and sampling.is_models_own and tools is None:
                on_stage("KL from the base model")
                drawn = [completion for _, _, completion in sampled.answered()]
                asked = [prompt for prompt in batch.prompts for _ in range(spec.samples)]
                found["kl"] = divergence(engine, asked, drawn, spec.temperature, base)
    on_stage("the probe")
    found["probe/perplexity"] = Estimate(perplexity(engine), float("nan"), 1)
    engine.restore()
    return Evaluation(found, greedy.rows(weights), sampled_rows)


def texts_read(
    reward_funcs: RewardFuncs | None, eval_funcs: RewardFuncs | None, reward_args: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """The columns of given completions that these functions read; none: they judge what is decoded. Raises RewardError,
    ConfigError.
    """
    rewards = reward_functions(reward_funcs, reward_args)
    return columns_read([*rewards, *eval_functions(eval_funcs, rewards, reward_args)])


def _means(rollouts: Rollouts, weights: Sequence[float], prefix: str) -> dict[str, Estimate]:
    """Means over prompts of the means over a prompt's samples: prompts are the independent values."""

    def over_prompts(values_M_P_G: Floats) -> Estimate:
        return statistics.mean(MEAN(values_M_P_G)[0])

    found = {"reward": over_prompts(rollouts.total_M_P_G(weights))}
    alone = len(weights) == 1  # then it is the reward
    for name, rewards_M_P_G in list(zip(rollouts.names, rollouts.rewards_F_M_P_G, strict=True))[alone:]:
        found[f"rewards/{name}" if name in ("reward", "length") else name] = over_prompts(rewards_M_P_G)
    tokens = np.array([completion.num_written for _, _, completion in rollouts.answered()], dtype=np.float64)
    found["length"] = over_prompts(tokens.reshape(rollouts.rewards_F_M_P_G.shape[1:]))
    found |= {name: Estimate(value, math.nan, found["length"].count) for name, value in rollouts.of_tools().items()}
    return {prefix + name: estimate for name, estimate in found.items()}


def _of_answers(rows: Sequence[dict[str, Any]], rewards: Sequence[Reward]) -> dict[str, Estimate]:
    """Where rewards are for confidence or calibration: how different answers to different prompts are, and whether
    confidences agree with what is right.
    """
    alone = {name: Estimate(share, math.nan, 1) for name, share in diversity_metrics(rows, rewards).items()}
    return {**calibration_metrics(rows), **alone}


def _passes(rollouts: Rollouts, weights: Sequence[float], spec: EvalSpec) -> dict[str, Estimate]:
    """pass@k, where it is known what passes."""
    gold = rollouts.rewards_F_M_P_G[len(weights) :, 0]
    if spec.success is not None:
        right_P_G = rollouts.total_M_P_G(weights)[0] >= spec.success
    elif len(gold):
        right_P_G = gold[0] >= 1
    else:
        return {}
    passed = right_P_G.astype(np.float64)
    ks = [k for k in spec.ks if k <= spec.samples]
    return {f"pass@{k}": statistics.mean([best_of_k(passed_G, k) for passed_G in passed]) for k in ks}
