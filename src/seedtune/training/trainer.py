"""`ESTrainer`: TRL's shape, the paper's loop."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_callback import CallbackHandler

from ..config.es_config import ESConfig
from ..config.keys import checks_arguments, explain_arguments
from ..config.values import OPERATORS, parse_rule
from ..data import dataset
from ..data.curriculum import Curriculum
from ..data.prompts import PromptBatch, Prompts
from ..engines.base import Prompt
from ..engines.hf.engine import HFEngine
from ..engines.tokenization import tokenizer_of
from ..errors import ConfigError, DataError, NotFiniteError, RewardError
from ..es import shaping, update
from ..es.population import Population
from ..evaluation import statistics
from ..evaluation.diversity import diversity_metrics
from ..journal.record import Iteration
from ..report.progress import Progress, display
from ..rewards.function import RewardFuncs, eval_functions, reward_functions
from ..rewards.outputs import columns_read
from ..rewards.scorer import Scorer
from ..rollout.rollout_func import RolloutFunc
from ..rollout.rollouts import Rollouts, unique_prompts
from ..rollout.runner import Interrupted
from ..utils.files import explain_disk, write_lines
from ..utils.paths import AnyPath, local_path
from ..utils.processes import check_alone
from ..utils.signals import Interrupts
from . import callbacks as hooks
from . import factory
from .best_center import BestCenter
from .calibration import calibrate, member_kl, probes
from .center_evaluation import CenterEvaluation
from .events import Events
from .facts import facts
from .hub import Hub, add_to_card
from .preflight import PROMPTS, Preflight, preflight
from .recovery import Recovery
from .result import TrainResult
from .reward_schedule import RewardSchedule
from .run import Run
from .step_control import StepControl, StepMeter
from .trainer_names import explain

log = logging.getLogger(__name__)

#: Where steps are chosen, how far noise moves the center is measured again with evaluations, or after so many
#: iterations where there are none in between.
_FOLLOWED = 10
#: Settings that the weights depend on and that are chosen where nobody sets them.
_CHOSEN = ("generation_batch_size", "chunk_size", "learning_rate")


_ALONE = (
    "reward_batch: group: an evaluation has one completion per prompt, so that a reward which compares completions of "
    "a prompt is the same for every center, and the base model would be handed back as the best. Set "
    "metric_for_best_model to the metric of a function in eval_funcs, or load_best_model_at_end: false."
)


class ESTrainer:
    """Fine-tune a causal language model by Evolution Strategies.

    `model` is a Hub id, a folder or a GGUF file (as text or path), `smollm2-135m-instruct`, or a transformers model.
    `reward_funcs` are callables with TRL's signature, or texts (a built-in name, `package.module.function`,
    `file.py:function`). `args` are the settings; default: `ESConfig.auto()`, a run that measures its steps.
    `train_dataset` and `eval_dataset` (default: the first training prompts) are `datasets.Dataset`s, lists of dicts, or
    tables, with a `prompt` column. `processing_class` is the tokenizer, or a processor that has one; default: the
    model's. `callbacks` are transformers'. `eval_funcs` look like reward functions; they are measured on the center at
    evaluations and never optimized. `progress` is what is shown; `Progress()` is silence. `tools`,
    `environment_factory` and `rollout_func` are TRL's (docs/guides/environments.md).

    Raises ConfigError, ModelError, DataError or RewardError before anything is written.
    """

    @checks_arguments(ESConfig)
    def __init__(
        self,
        model: AnyPath | PreTrainedModel,
        reward_funcs: RewardFuncs | None = None,
        args: ESConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        callbacks: Sequence[hooks.Given] | hooks.Given | None = None,
        *,
        eval_funcs: RewardFuncs | None = None,
        progress: Progress | None = None,
        tools: Sequence[Any] | None = None,
        environment_factory: Any = None,
        rollout_func: Callable[..., Any] | None = None,
    ) -> None:
        args = ESConfig.auto() if args is None else args
        if not isinstance(args, ESConfig):
            raise ConfigError(explain_arguments(ESConfig, args))
        check_alone(args.fleet)
        if train_dataset is None and environment_factory is not None:
            train_dataset = dataset.episodes(args.prompts_per_step)
        if train_dataset is None:
            raise DataError("train_dataset is missing: give a datasets.Dataset or a list of dicts with a 'prompt'.")
        self.rollout_func = None if rollout_func is None else RolloutFunc(rollout_func, self)
        if rollout_func is not None and (tools or environment_factory is not None):
            raise ConfigError("rollout_func makes completions itself: leave out tools and environment_factory, or it.")
        self.tools, reward_funcs = factory.tools_and_rewards(tools, environment_factory, reward_funcs, args)
        self.rewards = reward_functions(reward_funcs, args.reward_args)
        self.gold_metrics = eval_functions(eval_funcs, self.rewards, args.reward_args)
        texts = columns_read([*self.rewards, *self.gold_metrics])
        factory.check_reading(args, [*self.rewards, *self.gold_metrics] if texts else [], self.tools)
        how_many = (args.prompts_per_step, args.prompts_per_member, args.num_units)
        self.prompts = Prompts(train_dataset, eval_dataset, *how_many, texts, self.tools)
        if args.learning_rate == "auto" and len(self.prompts.train) < 2:
            raise ConfigError(
                "learning_rate: auto measures how reliable rewards are by comparing prompts, and the dataset has one: "
                "give more prompts, or a number as learning_rate."
            )
        if not self.rewards:
            raise RewardError("reward_funcs is empty: there is nothing to optimize. Give at least one function.")
        self.prompts.check_columns(self.rewards, self.gold_metrics, args.num_generations, complete=rollout_func is None)
        RewardSchedule(args, self.rewards)  # raises now for weights that do not fit
        self._curriculum(args)
        handlers = hooks.callbacks(args, callbacks)
        self.progress = progress if progress is not None else display()
        if args.fleet == "local":  # raises now for functions that cannot be sent to other processes
            Scorer(
                [*self.rewards, *self.gold_metrics], workers=args.reward_workers, timeout=args.reward_timeout
            ).close()
        factory.note_unused(args)

        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        tokenizer = None if processing_class is None else tokenizer_of(processing_class)
        if isinstance(model, str):
            self._stage(f"Loading {model}.")
        longest = factory.check_without_weights(model, tokenizer, args, self.prompts)
        self.engine = factory.driver(model, tokenizer, args)
        factory.check_asked([*self.rewards, *self.gold_metrics], self.engine, args)
        self.model, self.processing_class = self.engine.model, self.engine.tokenizer
        if longest is None:
            longest = self.prompts.encode(self.engine, args.max_completion_length)
        rows = factory.rows_at_once(self.engine, longest, args)
        chunk = args.chunk_size or 2 * rows
        known = args.learning_rate == "auto" or (args.sigma == "auto" and args.learning_rate is None)
        rate = args.learning_rate if known else args.alpha
        self.args = dataclasses.replace(args, learning_rate=rate, generation_batch_size=rows, chunk_size=chunk)
        self._left_open = [name for name in _CHOSEN if getattr(args, name) is None]
        self.population = Population(args.population_size, args.antithetic)
        self.fleet = factory.fleet(self.engine, model, tokenizer, self.args, self.tools, self.rollout_func)
        self._scorer(evaluation=True).close()  # raises now for functions that cannot be sent to other processes
        self.run = Run(self.args, self.engine, self.fleet, [r.name for r in self.rewards], self.prompts.digest())
        measured = (self.prompts, self.rewards, self.gold_metrics)
        self.center = CenterEvaluation(self.run, self.engine, self.fleet, *measured)
        self._follows_sigma = False
        self._begin()
        alone = args.reward_batch == "group" and args.num_generations == 1
        if alone and self.best.is_result and self.best.is_by_reward:
            log.warning(_ALONE)
        self.events = Events(
            self.run,
            self.best,
            handlers,
            self.model,
            self.processing_class,
            prompts_per_step=self._prompts_per_step,
            num_prompts=len(self.prompts.train),
        )

    def _stage(self, text: str) -> None:
        """Say what goes on, once: to those who see messages of Seedtune's loggers there, else beside the progress."""
        log.info(text)
        if not log.isEnabledFor(logging.INFO):
            self.progress.stage(text)

    def _begin(self) -> None:
        """What a run knows of itself before its first iteration."""
        self.schedule, self.curriculum = RewardSchedule(self.args, self.rewards), self._curriculum(self.args)
        self.steps = StepControl(self.args, math.nan, None, follows_sigma=False)
        self.best = BestCenter(self.args, self.run)

    def _curriculum(self, args: ESConfig) -> Curriculum | None:
        if args.curriculum is None:
            return None
        names, per_member = [r.name for r in self.rewards], args.prompts_per_member or 1
        return Curriculum.of(args.curriculum, self.prompts, names, args.seed, per_member)

    def _batch(self, t: int) -> PromptBatch:
        """The prompts of iteration t, which is the next one."""
        if self.curriculum:
            return self.prompts.at(
                self.curriculum.draw(self.prompts.prompts_per_step or 1, self.args.prompts_per_member or 1)
            )
        return self.prompts.batch(self.args.seed, t)

    @checks_arguments(ESConfig)
    def train(self, resume_from_checkpoint: bool | AnyPath | None = None) -> TrainResult:
        """Train to `max_steps`, or until a `stop_at` rule, a callback or Ctrl-C ends it.

        `resume_from_checkpoint=True` (or the path of `output_dir`) continues the run there; its weights are rebuilt
        from the base model and the journal. The first Ctrl-C ends the run after the iteration, the second drops the
        iteration; both save.

        Raises RewardError where a function fails, NotFiniteError where the model computes NaN or infinity, ConfigError
        where only the run shows that a setting cannot work (a rule names no metric that there is), RunFolderError or
        JournalError where the run cannot begin or go on in its folder, FleetError without replicas, SaveError where
        writing fails. What was done by then is in the journal.
        """
        interrupts = Interrupts()
        with self._scorer(evaluation=False) as scorer, self._scorer(evaluation=True) as evaluator, interrupts:
            self.fleet.rollouts.should_stop = lambda: interrupts.count > 1
            try:
                if resume_from_checkpoint:
                    self.run.folder.check_is_here(resume_from_checkpoint)
                self.run.open(resume=bool(resume_from_checkpoint))
                if not resume_from_checkpoint:
                    self._begin()
                else:
                    self._take_over(self.run.header_of_journal()["config"])
                self._calibrate(resuming=bool(resume_from_checkpoint))
                self.steps = self._step_control()
                if resume_from_checkpoint:
                    self.run.resume()
                else:
                    self.run.start()
                self._load_control()
                for line in self.run.evaluations:
                    self.progress.evaluated(line["step"], line)
                self.fleet.start(self._batch(1))
                about = [r.name for r in self.rewards], self._prompts_of_member, str(self.run.folder.given)
                self.progress.begin(facts(self.args, self.engine, *about), self.run.step, self.args.max_steps)
                self.events.train_begin(self.best)
                why = self._iterate(scorer, evaluator, interrupts)
                result = checkpoint = self.run.save(last=True)
                self.events.last_saved()
                stopped = interrupts.count > 0
                if self.best.is_result and self.best.found and not stopped:
                    said = self.best.hand_back()
                    why = f"{why} {said}" if self.best.step else f"{said} {why}"
                    result = self.run.save_best(last=True)
                    self.state.best_model_checkpoint = str(result)
                self.events.train_end()
                length = self.args.max_completion_length
                self.progress.finish(self.run.summary(why, result, self.prompts, length, stopped))
                self.run.push(result, checkpoint)
            except Exception as e:  # of a callback of the user's, too
                if (step := self.run.step) and self.run.journal.path.exists():
                    e.add_note(f"{step} iterations are safe in {self.run.journal.path}; resume goes on from there.")
                raise
            finally:
                self.progress.stop()
                self.fleet.close()
                self.run.folder.release()
        last = {**self.run.evaluations[-1]} if self.run.evaluations else {}
        last.pop("control", None)
        return TrainResult(self.run.step, last, why, stopped, self.best.step if self.best.found else None)

    def _take_over(self, config: Mapping[str, Any]) -> None:
        """What nobody set is as the journal of the run has it, not as it would be chosen here and now: how many rows
        fit into memory, for one, changes from day to day.
        """
        known = {name: config[name] for name in self._left_open if config.get(name) is not None}
        for name, value in known.items():
            if (now := getattr(self.args, name)) not in (None, value):
                log.warning(f"{name}: {value}, as the run began; nobody set it, and chosen now it would be {now}.")
        self.args = dataclasses.replace(self.args, **known)
        self.run.args, self.run.settings = self.args, dataclasses.replace(self.run.settings, **known)
        rollouts = self.fleet.rollouts
        sampling = dataclasses.replace(rollouts.spec.sampling, rows_at_once=self.args.generation_batch_size)
        rollouts.spec = dataclasses.replace(
            rollouts.spec, sampling=sampling, chunk_size=self.args.chunk_size or rollouts.spec.chunk_size
        )

    def _calibrate(self, resuming: bool) -> None:
        """`sigma: auto` becomes a number: the journal's, or a measured one."""
        if self.args.sigma != "auto":
            return
        calibration = None
        if resuming:
            header = self.run.header_of_journal()
            sigma = float(header["config"]["sigma"])
            self._follows_sigma = bool(header.get("calibration", {}).get("follows"))
        else:
            limit = self.args.max_completion_length
            calibration = calibrate(self.engine, self._first_prompts(), limit, self._stage)
            sigma, self._follows_sigma = calibration.sigma, calibration.follows
        self.fleet.set_sigma(sigma)
        args = dataclasses.replace(self.args, sigma=sigma)
        rate = args.learning_rate if args.learning_rate == "auto" else args.alpha
        self.args = dataclasses.replace(args, learning_rate=rate)
        self.run.args, self.run.calibration = self.args, calibration

    def _first_prompts(self) -> Sequence[Prompt]:
        return self._batch(1).prompts

    def _step_control(self) -> StepControl:
        """What chooses steps and measures them, made while the center is still the base model. Steps are not measured
        where that would hold the run up: where vLLM decodes, and where replicas have GPUs and the driver has none.
        """
        a, meter, curvature = self.args, self.steps.meter, math.nan
        slow = a.replica_gpus and a.learning_rate != "auto"
        wanted = a.guard or a.learning_rate == "auto"
        if wanted and not meter:
            self._stage("Measuring how far noise moves the model.")
        if isinstance(self.engine, HFEngine) and wanted and not slow and not meter:
            on = probes(self.engine, self._first_prompts(), a.max_completion_length)
            meter = StepMeter(self.engine, on) if on else None
        if meter or a.learning_rate == "auto":
            kl_member = member_kl(self.engine, self._first_prompts(), a.max_completion_length, a.fixed_sigma)
            curvature = kl_member / a.fixed_sigma**2
        if a.learning_rate == "auto" and not 0 < curvature < math.inf:
            raise ConfigError(
                "learning_rate: auto cannot measure how far noise moves the model: it writes nothing, or sigma is so "
                "small that nothing changes. Give numbers as sigma and learning_rate."
            )
        return StepControl(a, curvature, meter, follows_sigma=self._follows_sigma)

    def _load_control(self) -> None:
        """Choose steps, and watch where they lead, as the run on disk did."""
        self.recovery = Recovery(self.run, self.best, self.steps, comparable=self.curriculum is None)
        self.best.load()
        journal = self.run.journal
        if not journal.iterations:
            return
        if self.steps.meter:
            self.steps.meter.skip()
        control = {**(self.run.iterations or [{}])[-1].get("control", {}), **journal.iterations[-1].control}
        self.steps.load_state(control)
        self.schedule.load_state(control)
        if self.curriculum:
            self.curriculum.load_state(control)
        self.recovery.load()

    def _iterate(self, scorer: Scorer, evaluator: Scorer, interrupts: Interrupts) -> str:
        first = self.run.step
        try:
            if self._due(first) and not self.run.evaluation(first):
                self._evaluate(evaluator)
            saved = [checkpoint.name for checkpoint in self.run.folder.checkpoints()]
            if first and self._save_due(first) and f"checkpoint-{first}" not in saved:
                self.run.save()
            if (why := self._look_back(first)) is not None:
                return why
            self._next_stage(first)
            if first and (why := self._reason_to_stop(first, interrupts)):
                return why
            while self.run.step < self.args.max_steps:
                t = self.run.step + 1
                self.events.step_begin()
                try:
                    self._step(t, scorer)
                    self._after_step(t, evaluator)
                    why = self._look_back(t)
                except NotFiniteError as e:
                    if (why := self.recovery.give_up_center(e)) is not None:
                        return why
                    continue
                if why is not None:
                    return why
                self._next_stage(t)
                if why := self._reason_to_stop(t, interrupts):
                    return why
        except Interrupted:
            return f"Interrupted: what was not finished was dropped; {self.run.step} iterations are done."
        return f"Done: {self.args.max_steps} iteration{'s' * (self.args.max_steps > 1)}."

    def _step(self, t: int, scorer: Scorer) -> None:
        """One iteration of Algorithm 2 (Qiu et al., arXiv 2509.24372)."""
        if (sigma := self.steps.sigma_of(t)) != self.engine.sigma:
            self.fleet.set_sigma(sigma)
        members = self.population.ask(t)
        batch, weights = self._batch(t), self.schedule.weights
        rollouts = self.fleet.rollouts.run(members, batch, scorer, t, self.events.trainer_state(), self.progress.rows)
        rewards_M_P = rollouts.total_M_P(weights)
        coefficients = update.coefficients(members, self._fitness(rewards_M_P))
        rate = self.steps.learning_rate(t, members, rewards_M_P, coefficients)
        self.steps.before(rate, evaluation_due=self._due(t))
        started = time.perf_counter()
        self.events.call("on_pre_optimizer_step")
        norm = self.run.update(t, coefficients, rate)
        self.events.call("on_optimizer_step")
        if not self.recovery.watches and not math.isfinite(norm):
            raise NotFiniteError(f"the update of iteration {t} is no finite number: try a smaller learning_rate.")
        digest = self.fleet.digest()
        updated = time.perf_counter()
        more = self.steps.after(t, rewards_M_P, prompts_vary=len(batch.indices) < len(self.prompts.train))
        rows = rollouts.rows(weights)
        metrics = {**self._metrics(rollouts, norm, rate), **more, "time/update": updated - started}
        metrics |= diversity_metrics(rows, self.rewards)
        if self.curriculum:
            solved = [r.name for r in self.rewards].index(self.curriculum.setting.success or self.rewards[-1].name)
            self.curriculum.after(batch.indices, shaping.prompt_rewards(rollouts.rewards_M_P(solved)))
            metrics |= self.curriculum.metrics()
        rewards_M, control = tuple(shaping.member_rewards(rewards_M_P)), self.steps.state()
        chosen = {**(self.curriculum.state() if self.curriculum else {}), **self.schedule.state()}
        journaled, control = {**(control if self.steps.follows else {}), **chosen}, {**control, **chosen}
        done = Iteration(t, rewards_M, coefficients, rate, batch.indices, digest, rollouts.dropped, journaled)
        self.run.record(done, metrics, control)
        if self.args.log_completions:
            shown = unique_prompts(rows) if self.args.log_unique_prompts else rows
            write_lines(self.run.folder.completions(f"train-{t}"), shown)
        self.progress.iteration(t, metrics, rows[-1])
        self.events.stepped(metrics)
        self.recovery.iteration(metrics)

    def _next_stage(self, t: int) -> None:
        """Other reward weights from here on, if they are due; what members earned before says nothing about later."""
        if self.schedule.after(t, self.run.evaluation(t) or {}):
            self.recovery.forget_rewards()

    def _look_back(self, t: int) -> str | None:
        """After iteration t: whether its evaluation found the best center so far, whether the run has diverged (then it
        returns to its best center), and how far noise moves the center now. Returns why the run ends, if it does.
        """
        line, returns = self.run.evaluation(t), self.run.journal.returns
        if returns and returns[-1].t == t:
            return None  # before it was resumed
        if line and self.best.verdict > 0 and t and self.args.save_strategy == "best":
            self.state.best_model_checkpoint = str(self.run.save_best())
        if reason := self.recovery.why_diverged(line):
            return self.recovery.go_back(reason)
        if t and self.steps.follows and t % (self.args.eval_steps or _FOLLOWED) == 0 and t < self.args.max_steps:
            self.steps.follow(self.engine, self._first_prompts(), line or {})
        return None

    def _fitness(self, rewards_M_P: shaping.Floats) -> shaping.Floats:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", shaping.DegenerateRewardsWarning)
            try:
                fitness = shaping.shape(rewards_M_P, self.args.fitness_shaping)
            except ValueError as e:
                raise ConfigError(f"{e}.") from None
        for warning in caught:
            log.warning("iteration %d: %s.", self.run.step + 1, warning.message)
        return fitness

    def _after_step(self, t: int, evaluator: Scorer) -> None:
        """What is due after iteration t, or asked for by a callback."""
        self.events.step_end(t, evaluation_due=self._due(t), saving_due=self._save_due(t))
        if self.control.should_evaluate:
            self._evaluate(evaluator)
        if self.control.should_save:
            self.run.save()
            self.events.saved()

    def _due(self, t: int) -> bool:
        return t in (0, self.args.max_steps) or (self.args.eval_steps > 0 and t % self.args.eval_steps == 0)

    def _save_due(self, t: int) -> bool:
        every = self.args.save_steps if self.args.save_strategy == "steps" else 0
        return every > 0 and t % every == 0

    def _reason_to_stop(self, t: int, interrupts: Interrupts) -> str | None:
        if interrupts.count:
            return f"Interrupted after iteration {t}."
        if self.control.should_training_stop and t < self.args.max_steps:
            return f"A callback ended the run after iteration {t}."
        if not self.run.evaluations or self.run.evaluations[-1]["step"] != t:
            return None
        for metric, operator, bound in map(parse_rule, self.args.stop_at):
            value = statistics.metric(self.run.evaluations[-1], metric, "stop_at")
            if OPERATORS[operator](value, bound):
                return f"Ended after iteration {t} by the rule `{metric} {operator} {bound:g}`: it is {value:.3g}."
        return None

    def preflight(self) -> Preflight:
        """Will this run learn? A few hundred completions of members say how reliable the rewards are; with a verdict,
        and settings to recommend. Nothing is written, and the center stays as it is. Raises ConfigError, RewardError.
        """
        batch = self.prompts.some(self.args.seed, PROMPTS)
        if self.curriculum:
            batch = self.prompts.at(self.curriculum.draw(PROMPTS))
        with self._scorer(evaluation=False) as scorer:
            return preflight(
                self.engine, self.args, batch, scorer, self.schedule.weights, self.progress.rows, self.tools,
                self.rollout_func,
            )  # fmt: skip

    @checks_arguments(ESConfig)
    def evaluate(self) -> dict[str, float]:
        """Rewards and metrics of the center, by the names of `metrics.jsonl`, on `eval_dataset`, or on the first
        training prompts when there is none. Raises RewardError.
        """
        with self._scorer(evaluation=True) as scorer:
            state = self.events.trainer_state()
            return self.center.rewarded(scorer, self.schedule.final_weights, state, self.progress.rows)[1]

    def _evaluate(self, scorer: Scorer) -> None:
        started, state, comparable = time.perf_counter(), self.events.trainer_state(), self.curriculum is None
        rows, metrics = self.center.full(scorer, self.schedule, state, self.progress.rows, comparable=comparable)
        for metric, *_ in map(parse_rule, self.args.stop_at):
            statistics.metric(metrics, metric, "stop_at")
        sound = self.recovery.is_sound(metrics)
        found = self.best.evaluation({"step": self.run.step, **metrics}, rows, sound=sound)
        control = found.pop("control", {})
        metrics |= found
        metrics["time/evaluate"] = time.perf_counter() - started
        self.run.record_evaluation(rows, metrics, control)
        self.progress.evaluated(self.run.step, metrics)
        self.events.evaluated(metrics)

    def generate_completions(self, prompts: Sequence[Any]) -> list[dict[str, Any]]:
        """Within `rollout_func`: completions of prompts (text, messages, or lists of tokens) by the member at work, all
        at once: for each its `prompt_ids`, `completion_ids`, `logprobs` (one per token) and `text`. Raises
        ConfigError outside of it.
        """
        if self.rollout_func is None:
            raise ConfigError("generate_completions is for rollout_func, and this trainer has none.")
        return self.rollout_func.complete(prompts)

    @checks_arguments(ESConfig)
    def save_model(self, output_dir: AnyPath | None = None) -> None:
        """Write the center to a folder that `from_pretrained` loads; default: `output_dir`. Raises SaveError."""
        target = local_path(output_dir or self.args.output_dir)
        with explain_disk(target):
            self.run.write_model(target)

    @checks_arguments(ESConfig)
    def push_to_hub(
        self,
        commit_message: str = "End of training",
        *,
        token: str | None = None,
        revision: str | None = None,
        dataset_name: str | None = None,
        tags: str | Sequence[str] = (),
    ) -> str:
        """Push the center to the repository that the settings name (`hub_model_id`, ...), whatever `push_to_hub` says
        there: with `commit_message`, and another `token` or `revision` (branch) than theirs where they are given.
        `dataset_name` and `tags` stand in its model card. Returns the URL of the commit. Raises HubError.
        """
        hub = Hub(
            dataclasses.replace(
                self.args, hub_token=token or self.args.hub_token, hub_revision=revision or self.args.hub_revision
            )
        )
        hub.open()
        with TemporaryDirectory() as folder:
            self.save_model(folder)
            add_to_card(Path(folder), dataset_name, tags)
            return hub.push(Path(folder), commit_message)

    @property
    def state(self) -> TrainerState:
        """transformers' state of the run, as callbacks see it."""
        return self.events.state

    @property
    def control(self) -> TrainerControl:
        """What callbacks ask for."""
        return self.events.control

    @property
    def callback_handler(self) -> CallbackHandler:
        """transformers' list of callbacks."""
        return self.events.handler

    def is_world_process_zero(self) -> bool:
        """True: a run is one process."""
        return True

    is_local_process_zero = is_world_process_zero

    def __getattr__(self, name: str) -> Any:
        """For what transformers' or TRL's trainers have, and this has not."""
        raise AttributeError(explain(name, [f.name for f in dataclasses.fields(ESConfig)]))

    @property
    def _prompts_per_step(self) -> int:
        return self.prompts.prompts_per_step or len(self.prompts.train)

    @property
    def _prompts_of_member(self) -> int:
        return self.args.prompts_per_member or self._prompts_per_step

    def add_callback(self, callback: hooks.Given) -> None:
        """Call this one, too, from now on. Raises ConfigError for one that cannot be used."""
        self.events.handler.add_callback(hooks.checked(callback, self.args))

    def pop_callback(self, callback: hooks.Given) -> TrainerCallback | None:
        """Remove a callback, or the first of a class, and return it; None: there is none."""
        popped: TrainerCallback | None = self.events.handler.pop_callback(callback)
        return popped

    def remove_callback(self, callback: hooks.Given) -> None:
        """As `pop_callback`, which returns it."""
        self.events.handler.remove_callback(callback)

    def _scorer(self, evaluation: bool) -> Scorer:
        functions = [*self.rewards, *(self.gold_metrics if evaluation else [])]
        return self.fleet.scorer(functions, workers=self.args.reward_workers, timeout=self.args.reward_timeout)

    def _metrics(self, rollouts: Rollouts, norm: float, learning_rate: float) -> dict[str, float]:
        seconds: Mapping[str, float] = rollouts.seconds
        return {
            **rollouts.metrics(self.schedule.weights),
            "num_tokens": self.run.tokens + rollouts.tokens(),
            "learning_rate": learning_rate,
            "es/sigma": self.engine.sigma,
            "es/update_norm": norm,
            "tokens_per_second": rollouts.new_tokens / max(seconds.get("generate", seconds.get("forward", 0.0)), 1e-9),
            **{f"time/{name}": value for name, value in seconds.items()},
            **self.fleet.metrics(),
        }
