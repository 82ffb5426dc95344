"""`ESTrainer`: TRL's shape, the paper's loop."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from . import build
from .build import RewardFuncs
from .calibrate import calibrate
from .config import ESConfig
from .engines.base import Sampling
from .errors import ConfigError, DataError, RewardError, SeedtuneError
from .es import shaping, update
from .es.population import Population
from .evaluate.audit import hacking
from .evaluate.drift import drift, to_draw
from .fleet.answers import Answers
from .fleet.local import Beside, Interrupted
from .interrupts import Interrupts
from .journal.folder import write_lines
from .journal.record import Iteration
from .prompts import Prompts
from .report.progress import Progress, display
from .run import Run
from .tasks.pool import Scorer
from .values import OPERATORS, parse_rule


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` returns: iterations done, the last evaluation, why it ended, and whether the user ended it."""

    global_step: int
    metrics: dict[str, float]
    why: str
    interrupted: bool


class ESTrainer:
    """Fine-tune a causal language model by Evolution Strategies.

    `model` is a Hub id, a folder, a GGUF file, `smollm2-135m-instruct`, or a transformers model. `reward_funcs` are
    callables with TRL's signature, or texts (a built-in name, `package.module.function`, `file.py:function`). Datasets
    are `datasets.Dataset`s or lists of dicts with a `prompt` column. `eval_funcs` look like reward functions; they are
    measured on the centre at evaluations and never optimised. `progress` is what is shown; `Progress()` is silence.

    Raises ConfigError, ModelError, DataError or RewardError before anything is written.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardFuncs | None = None,
        args: ESConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        *,
        eval_funcs: RewardFuncs | None = None,
        progress: Progress | None = None,
    ) -> None:
        args = args or ESConfig()
        if not isinstance(args, ESConfig):
            raise ConfigError(f"args must be an ESConfig, got {type(args).__name__}: write ESConfig(output_dir=...).")
        if train_dataset is None:
            raise DataError("train_dataset is missing: give a datasets.Dataset or a list of dicts with a 'prompt'.")
        self.prompts = Prompts(train_dataset, eval_dataset, args.prompts_per_step)
        self.rewards, self.eval_only = build.rewards(reward_funcs), build.rewards(eval_funcs)
        if not self.rewards:
            raise RewardError("reward_funcs is empty: there is nothing to optimise. Give at least one function.")
        self.prompts.check_columns(self.rewards, self.eval_only)
        self.weights = args.reward_weights or [1.0] * len(self.rewards)
        if len(self.weights) != len(self.rewards):
            raise ConfigError(
                f"reward_weights has {len(self.weights)} numbers for {len(self.rewards)} reward functions."
            )
        handlers = build.callbacks(args, callbacks)

        self.engine = build.driver(model, processing_class, args)
        self.model, self.processing_class = self.engine.model, self.engine.tokenizer
        longest = self.prompts.encode(self.engine, args.max_completion_length)
        rows = build.rows_at_once(self.engine, longest, args)
        chunk = args.chunk_size or 2 * rows
        rate = None if args.sigma == "auto" and args.learning_rate is None else args.alpha
        self.args = dataclasses.replace(args, learning_rate=rate, generation_batch_size=rows, chunk_size=chunk)
        self.population = Population(args.population_size, args.antithetic)
        sampling = Sampling(args.max_completion_length, args.temperature, args.top_p, args.top_k, rows_at_once=rows)
        self.progress = progress if progress is not None else display()
        self.fleet = build.fleet(self.engine, model, processing_class, self.args, sampling, self.progress.note)
        self._scorer(evaluation=True).close()  # says now whether the functions can be sent to other processes
        self.run = Run(self.args, self.fleet, [r.name for r in self.rewards], self.prompts.digest())
        self.state = TrainerState(max_steps=args.max_steps, is_local_process_zero=True, is_world_process_zero=True)
        self.control = TrainerControl()
        self.callback_handler = CallbackHandler(handlers, self.model, self.processing_class, None, None)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainResult:
        """Train to `max_steps`, or until a `stop_at` rule, a callback or Ctrl-C ends it.

        `resume_from_checkpoint=True` (or the path of `output_dir`) goes on with the run there; its weights are rebuilt
        from the base model and the journal. The first Ctrl-C ends the run after the iteration, the second drops the
        iteration; both save.
        """
        with (
            self._scorer(evaluation=False) as scorer,
            self._scorer(evaluation=True) as evaluator,
            Interrupts(self.progress.note) as interrupts,
        ):
            self.fleet.interrupted = lambda: interrupts.count > 1
            try:
                if resume_from_checkpoint:
                    self.run.folder.check_is_here(resume_from_checkpoint)
                self._settle_sigma(resuming=bool(resume_from_checkpoint))
                if resume_from_checkpoint:
                    self.run.resume(self.progress.note)
                else:
                    self.run.start()
                self.state.global_step, self.state.log_history = self.run.step, list(self.run.history)
                for line in self.run.evaluations:
                    self.progress.evaluated(line["step"], line)
                self.fleet.begin(self.prompts.batch(self.args.seed, 1))
                self.progress.begin(self._facts(), self.run.step, self.args.max_steps)
                self._call("on_train_begin")
                why = self._iterate(scorer, evaluator, interrupts)
                checkpoint = self.run.save()
                self._call("on_train_end")
                stopped = interrupts.count > 0
                self.progress.finish(
                    self.run.summary(why, checkpoint, self.prompts, self.args.max_completion_length, stopped)
                )
            except SeedtuneError as e:
                if self.run.step:
                    e.add_note(
                        f"{self.run.step} iterations are safe in {self.run.journal.path}; resume goes on from there."
                    )
                raise
            finally:
                self.progress.stop()
                self.fleet.close()
                self.run.folder.release()
        last = self.run.evaluations[-1] if self.run.evaluations else {}
        return TrainResult(self.run.step, last, why, stopped)

    def _settle_sigma(self, resuming: bool) -> None:
        """`sigma: auto` becomes a number: the journal's, or what a measurement says."""
        if self.args.sigma != "auto":
            return
        calibration = None
        if resuming:
            sigma = self.run.sigma_of_journal()
        else:
            self.run.folder.check(resume=False)
            calibration = calibrate(
                self.engine, self.prompts.batch(self.args.seed, 1).prompts, self.args.max_completion_length
            )
            sigma = calibration.sigma
            self.progress.note("\n".join(["sigma: auto", *calibration.lines()]))
        self.engine.set_sigma(sigma)
        args = dataclasses.replace(self.args, sigma=sigma)
        self.args = dataclasses.replace(args, learning_rate=args.alpha)
        self.run.settle(self.args, calibration)

    def _iterate(self, scorer: Scorer, evaluator: Scorer, interrupts: Interrupts) -> str:
        first = self.run.step
        try:
            if self._due(first) and not any(line["step"] == first for line in self.run.evaluations):
                self._evaluate(evaluator)
            if first and self._save_due(first) and not self.run.has_checkpoint(first):
                self.run.save()
            if first and (why := self._reason_to_stop(first, interrupts)):
                return why
            for t in range(first + 1, self.args.max_steps + 1):
                self._call("on_step_begin")
                self._step(t, scorer)
                self._after_step(t, evaluator)
                if why := self._reason_to_stop(t, interrupts):
                    return why
        except Interrupted:
            return f"Interrupted: what was not finished was dropped; {self.run.step} iterations are done."
        return f"Done: {self.args.max_steps} iteration{'s' * (self.args.max_steps > 1)}."

    def _step(self, t: int, scorer: Scorer) -> None:
        """One iteration of Algorithm 2 (Qiu et al., arXiv 2509.24372)."""
        members = self.population.ask(t)
        questions = self.prompts.batch(self.args.seed, t)
        answers = self.fleet.evaluate(members, questions, scorer, t, self._state_for_rewards(), self.progress.rows)
        rewards_M_P = answers.total_M_P(self.weights)
        coefficients = update.coefficients(members, self._fitness(rewards_M_P))
        started = time.perf_counter()
        norm = self.run.update(t, coefficients, self.args.alpha)
        digest = self.fleet.digest()
        metrics = {**self._metrics(answers, norm), "time/update": time.perf_counter() - started}
        rewards_M = tuple(shaping.member_rewards(rewards_M_P))
        done = Iteration(t, rewards_M, coefficients, self.args.alpha, questions.indices, digest, answers.dropped)
        self.run.record(done, metrics)
        self._show(t, answers, metrics)

    def _fitness(self, rewards_M_P: shaping.Floats) -> shaping.Floats:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", shaping.DegenerateRewardsWarning)
            try:
                fitness = shaping.shape(rewards_M_P, self.args.fitness_shaping)
            except ValueError as e:
                raise ConfigError(f"{e}.") from None
        for warning in caught:
            self.progress.note(f"Warning, iteration {self.run.step + 1}: {warning.message}.")
        return fitness

    def _show(self, t: int, answers: Answers, metrics: dict[str, float]) -> None:
        rows = answers.rows(self.weights)
        if self.args.log_completions:
            write_lines(self.run.folder.completions(f"train-{t}"), rows)
        self.state.global_step = t
        self.state.log_history.append({"step": t, **metrics})
        self.progress.iteration(t, metrics, rows[-1])
        self._call("on_log", logs=dict(metrics))

    def _after_step(self, t: int, evaluator: Scorer) -> None:
        """What is due after iteration t. Callbacks may ask for more, or for the end, as in transformers."""
        self.control.should_evaluate = self._due(t)
        self.control.should_save = self._save_due(t)
        self._call("on_step_end")
        if self.control.should_evaluate:
            self._evaluate(evaluator)
        if self.control.should_save:
            self.run.save()
            self._call("on_save")

    def _due(self, t: int) -> bool:
        return t in (0, self.args.max_steps) or (self.args.eval_steps > 0 and t % self.args.eval_steps == 0)

    def _save_due(self, t: int) -> bool:
        return self.args.save_steps > 0 and t % self.args.save_steps == 0

    def _reason_to_stop(self, t: int, interrupts: Interrupts) -> str | None:
        if interrupts.count:
            return f"Interrupted after iteration {t}."
        if self.control.should_training_stop:
            return f"A callback ended the run after iteration {t}."
        if not self.run.evaluations or self.run.evaluations[-1]["step"] != t:
            return None
        self._check_rules(self.run.evaluations[-1])
        for metric, operator, bound in map(parse_rule, self.args.stop_at):
            value = self.run.evaluations[-1][metric]
            if OPERATORS[operator](value, bound):
                return f"Ended after iteration {t} by the rule `{metric} {operator} {bound:g}`: it is {value:.3g}."
        return None

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Rewards of the centre on `eval_dataset`, or on the first training prompts when there is none."""
        return self.measure()[1]

    def measure(self) -> tuple[Answers, dict[str, float]]:
        """As `evaluate`, with the answers."""
        with self._scorer(evaluation=True) as scorer:
            return self._centre(scorer)

    def _centre(self, scorer: Scorer, drawn: Beside | None = None) -> tuple[Answers, dict[str, float]]:
        questions, state = self.prompts.evaluation(), self._state_for_rewards()
        answers = self.fleet.evaluate([None], questions, scorer, 0, state, self.progress.rows, drawn)
        metrics = answers.metrics(self.weights)
        metrics["reward_std"] = float(np.nanstd(answers.total_M_P(self.weights)))
        return answers, {f"eval/{name}": value for name, value in metrics.items()}

    def _evaluate(self, scorer: Scorer) -> None:
        started = time.perf_counter()
        samples = self.args.drift_samples if self.args.restore == "exact" else 0
        drawn = to_draw(self.prompts.evaluation().prompts, samples) if samples and self.run.step else None
        answers, metrics = self._centre(scorer, drawn)
        more = {**(drift(self.engine, drawn) if samples else {}), **self._audit(answers)}
        metrics |= {f"eval/{name}": value for name, value in more.items()}
        self._check_rules(metrics)
        metrics["time/evaluate"] = time.perf_counter() - started
        self.run.record_evaluation(answers, self.weights, metrics)
        self.state.log_history.append({"step": self.run.step, **metrics})
        self.progress.evaluated(self.run.step, metrics)
        self._call("on_log", logs={name.replace("eval/", "eval_", 1): value for name, value in metrics.items()})
        self._call("on_evaluate", metrics=metrics)

    def _check_rules(self, metrics: Mapping[str, Any]) -> None:
        for metric, *_ in map(parse_rule, self.args.stop_at):
            if metric not in metrics:
                known = ", ".join(name for name in metrics if name.startswith("eval/"))
                raise ConfigError(f"stop_at: evaluation has no metric {metric!r}; it has: {known}.")

    def _audit(self, answers: Answers) -> dict[str, float]:
        """`hacked`: 1 when the reward has risen since the first evaluation while a truth fell."""
        if not self.eval_only:
            return {}
        first = self.run.evaluations[:1]
        before = self.run.answers(first[0]) if first else []
        findings = hacking(before, answers.rows(self.weights), [f.name for f in self.eval_only])
        for finding in findings:
            self.progress.note(f"Warning, iteration {self.run.step}: {finding}.")
        return {"hacked": float(bool(findings))}

    # --- small things -------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None) -> None:
        """Write the centre to a folder that `from_pretrained` loads; default: `output_dir`."""
        self.run.write_model(Path(output_dir or self.args.output_dir))

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        self.callback_handler.add_callback(callback)

    def _scorer(self, evaluation: bool) -> Scorer:
        functions = [*self.rewards, *(self.eval_only if evaluation else [])]
        return self.fleet.scorer(functions, workers=self.args.reward_workers, timeout=self.args.reward_timeout)

    def _call(self, event: str, **kwargs: Any) -> None:
        self.control = self.callback_handler.call_event(event, self.args, self.state, self.control, **kwargs)

    def _state_for_rewards(self) -> dict[str, Any]:
        return {"global_step": self.run.step, "max_steps": self.args.max_steps}

    def _metrics(self, answers: Answers, norm: float) -> dict[str, float]:
        seconds: Mapping[str, float] = answers.seconds
        self.state.num_input_tokens_seen = self.run.tokens + answers.tokens()
        return {
            **answers.metrics(self.weights),
            "num_tokens": self.state.num_input_tokens_seen,
            "learning_rate": self.args.alpha,
            "es/sigma": self.args.fixed_sigma,
            "es/update_norm": norm,
            "tokens_per_second": answers.new_tokens / max(seconds.get("generate", 0.0), 1e-9),
            **{f"time/{name}": value for name, value in seconds.items()},
            **self.fleet.metrics(),
        }

    def _facts(self) -> list[tuple[str, str]]:
        a, about = self.args, self.engine.describe()
        mirrored = ", in mirrored pairs" if a.antithetic else ""
        kind = f"rank-{a.rank}" if a.perturbation == "lowrank" else "full-rank"
        asked = a.prompts_per_step or len(self.prompts.train)
        moved, size = about["moved"] / 1e6, about["parameters"] / 1e6
        cannot = "" if a.perturbation == "full" else " low-rank"
        left_out = f"{len(about['left_out'])} parameters that cannot move{cannot}; journal.jsonl names them"
        return [
            ("model", f"{about['model']}: {size:.1f}M parameters, {moved:.1f}M of them move ({about['dtype']})"),
            *([("left out", left_out)] if about["left_out"] else []),
            *([("scope", f"{a.scope}: vLLM's adapters carry linear layers")] if a.by_adapters else []),
            *[("engine", remark) for remark in self.engine.remarks],
            *([("quantised", _quantised(about["quantised"], a.master_dtype))] if "quantised" in about else []),
            ("population", f"{a.population_size} {kind} members{mirrored}, {asked} prompts each an iteration"),
            ("step", f"sigma {a.sigma:g}, learning rate {a.alpha:g}, {a.optimizer}"),
            ("reward", ", ".join(r.name for r in self.rewards)),
            *([("fleet", _fleet(a.replicas, a.replica_cpus))] if a.fleet == "ray" else []),
            ("output", str(self.run.folder.path)),
        ]


def _quantised(layers: Mapping[str, str], master: str) -> str:
    kinds = ", ".join(sorted({*layers.values()}))
    return (
        f"{len(layers)} layers stay {kinds}; their master is {master}, from which they are quantised anew after an "
        "update: small steps show in answers once they have added up"
    )


def _fleet(replicas: int, threads: int) -> str:
    return f"Ray, {replicas} replica{'s' * (replicas > 1)} of {threads} thread{'s' * (threads > 1)}"
