"""`ESTrainer`: TRL's shape, the paper's loop."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from . import __version__
from .config import OPERATORS, ESConfig, parse_rule
from .config_file import to_yaml
from .engines import models
from .engines.base import Engine, Sampling
from .engines.hf import DTYPES, HFEngine
from .environment import environment, software
from .errors import ConfigError, DataError, JournalError, RewardError
from .es import shaping, update
from .es.population import Population
from .fleet.answers import Answers
from .fleet.local import Interrupted, LocalFleet
from .fleet.plan import Questions, draw
from .interrupts import Interrupts
from .journal import record
from .journal.folder import RunFolder, read_lines, write_lines, write_text
from .journal.store import Journal
from .report.model_card import model_card
from .report.progress import Progress, Summary, display
from .reporters import reporting_callbacks
from .tasks import dataset
from .tasks.pool import Scorer
from .tasks.reward import Reward

RewardFuncs = str | Callable[..., Any] | Sequence[str | Callable[..., Any]]
_EVAL_WITHOUT_SET = 64


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` returns: iterations done, the last metrics, and why it ended."""

    global_step: int
    metrics: dict[str, float]
    why: str
    interrupted: bool


class ESTrainer:
    """Fine-tune a causal language model by Evolution Strategies.

    `model` is a Hub id, a folder, a GGUF file, `smollm2-135m-instruct`, or a transformers model; `reward_funcs` are
    callables with TRL's signature, or texts (a built-in name, `package.module.function`, `file.py:function`);
    datasets are `datasets.Dataset`s or lists of dicts with a `prompt` column. `eval_funcs` have the same signature:
    they are measured on the centre at evaluations, and never optimised.

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
        if train_dataset is None:
            raise DataError("train_dataset is missing: give a datasets.Dataset or a list of dicts with a 'prompt'.")
        self.train_rows = dataset.check(train_dataset, "train_dataset")
        self.held_out = eval_dataset is not None
        if isinstance(eval_dataset, dict) and "prompt" not in eval_dataset:
            raise DataError("eval_dataset must be one dataset, not several by name: choose one of them.")
        self.eval_rows = dataset.check(eval_dataset, "eval_dataset") if self.held_out else self.train_rows
        self.rewards, self.eval_only = _rewards(reward_funcs), _rewards(eval_funcs)
        if not self.rewards:
            raise RewardError("reward_funcs is empty: there is nothing to optimise. Give at least one function.")
        for reward in self.rewards:
            reward.check_columns(dataset.columns_of(self.train_rows))
        for reward in [*self.rewards, *self.eval_only]:
            reward.check_columns(dataset.columns_of(self.eval_rows))
        self.weights = args.reward_weights or [1.0] * len(self.rewards)
        if len(self.weights) != len(self.rewards):
            raise ConfigError(f"reward_weights has {len(self.weights)} numbers for {len(self.rewards)} reward functions.")
        if args.prompts_per_step and args.prompts_per_step > len(self.train_rows):
            raise ConfigError(
                f"prompts_per_step is {args.prompts_per_step}, but the dataset has {len(self.train_rows)} prompts: "
                "lower it, or leave it out to use them all."
            )

        callbacks = [*reporting_callbacks(args.reporters), *(callbacks or [])]
        self.engine, self.processing_class = _engine(model, processing_class, args)
        self.model = getattr(self.engine, "model", None)
        self._train_prompts = self.engine.encode([r["prompt"] for r in self.train_rows], args.max_completion_length)
        shown = self.eval_rows if self.held_out else [self.train_rows[n] for n in self._sample_of_training()]
        self._eval_prompts = self.engine.encode([r["prompt"] for r in shown], args.max_completion_length)
        longest = max(len(p.ids) for p in [*self._train_prompts, *self._eval_prompts]) + args.max_completion_length
        rows = args.generation_batch_size or self.engine.rows_that_fit(longest)
        self.args = dataclasses.replace(args, learning_rate=args.alpha, generation_batch_size=rows)

        self.population = Population(args.population_size, args.antithetic)
        sampling = Sampling(args.max_completion_length, args.temperature, args.top_p, args.top_k)
        self.fleet = LocalFleet(self.engine, sampling=sampling, rows_at_once=rows, seed=args.seed)
        self.folder = RunFolder(args.output_dir)
        self.progress = progress if progress is not None else display()
        self.state = TrainerState(max_steps=args.max_steps, is_local_process_zero=True, is_world_process_zero=True)
        self.control = TrainerControl()
        self.callback_handler = CallbackHandler(callbacks, self.model, self.processing_class, None, None)
        self._eval_questions = self._questions(shown, self._eval_prompts, list(range(len(shown))))
        self._last_eval: dict[str, float] = {}
        self._first_eval: dict[str, float] = {}

    # --- the loop -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainResult:
        """Train to `max_steps`, or until a `stop_at` rule, a callback or Ctrl-C ends it.

        `resume_from_checkpoint=True` goes on with the run in `output_dir`: the weights are rebuilt from the base model
        and the journal. The first Ctrl-C ends after the running iteration, the second drops it; both save.
        """
        self.folder.claim(resume=bool(resume_from_checkpoint))
        weights = [*self.rewards, *self.eval_only]
        with (
            Scorer(weights, workers=self.args.reward_workers, timeout=self.args.reward_timeout) as evaluator,
            Scorer(self.rewards, workers=self.args.reward_workers, timeout=self.args.reward_timeout) as scorer,
            Interrupts(self.progress.note) as interrupts,
        ):
            self.fleet.interrupted = lambda: interrupts.count > 1
            try:
                journal = self._resume() if resume_from_checkpoint else self._start()
                self.progress.begin(self._facts(), self.state.global_step, self.args.max_steps)
                self._call("on_train_begin")
                why = self._iterate(journal, scorer, evaluator, interrupts)
                checkpoint = self._save(self.state.global_step)
                self._call("on_train_end")
                self.progress.finish(self._summary(why, checkpoint, interrupted=interrupts.count > 0))
            finally:
                self.progress.stop()
        return TrainResult(self.state.global_step, dict(self._last_eval), why, interrupts.count > 0)

    def _iterate(self, journal: Journal, scorer: Scorer, evaluator: Scorer, interrupts: Interrupts) -> str:
        first = self.state.global_step
        try:
            if not self.folder.completions(f"eval-{first}").exists() and (first == 0 or self._due(first)):
                self._evaluate(evaluator)
            for t in range(first + 1, self.args.max_steps + 1):
                self._call("on_step_begin")
                self._step(t, journal, scorer)
                self._after_step(t, evaluator)
                if why := self._reason_to_stop(t, interrupts):
                    return why
        except Interrupted:
            return f"Interrupted: iteration {self.state.global_step + 1} was dropped, the ones before it are kept."
        return f"Done: {self.args.max_steps} iterations."

    def _step(self, t: int, journal: Journal, scorer: Scorer) -> None:
        """One iteration of Algorithm 2 (Qiu et al., arXiv 2509.24372)."""
        members = self.population.ask(t)
        answers = self.fleet.evaluate(
            members, self._batch(t), scorer, iteration=t, state=self._state_for_rewards(), on_chunk=self._on_chunk
        )  # fmt: skip
        rewards_M_P = answers.total_M_P(self.weights)
        coefficients = update.coefficients(members, self._fitness(rewards_M_P))
        norm = self.fleet.update(members, coefficients, self.args.alpha)
        metrics = self._metrics(t, answers, norm)
        self.folder.append_metrics({"step": t, **metrics})
        journal.append(
            record.Iteration(
                t,
                tuple(shaping.member_rewards(rewards_M_P)),
                coefficients,
                self.args.alpha,
                answers.questions.indices,
                self.fleet.digest(),
            )
        )
        self.state.global_step = t
        if self.args.log_completions:
            write_lines(self.folder.completions(f"train-{t}"), answers.rows(self.weights))
        self.progress.iteration(t, metrics, answers.rows(self.weights)[-1])
        self._log(metrics)

    def _fitness(self, rewards_M_P: shaping.Floats) -> shaping.Floats:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", shaping.DegenerateRewardsWarning)
            try:
                fitness = shaping.shape(rewards_M_P, self.args.fitness_shaping)
            except ValueError as e:
                raise ConfigError(str(e)) from None
        for warning in caught:
            self.progress.note(f"Warning, iteration {self.state.global_step + 1}: {warning.message}.")
        return fitness

    def _after_step(self, t: int, evaluator: Scorer) -> None:
        """What is due after iteration t; callbacks may ask for more, or for the end, as in transformers."""
        self.control.should_evaluate = self._due(t)
        self.control.should_save = bool(self.args.save_steps) and t % self.args.save_steps == 0
        self._call("on_step_end")
        if self.control.should_evaluate:
            self._evaluate(evaluator)
        if self.control.should_save:
            self._save(t)
            self._call("on_save")

    def _due(self, t: int) -> bool:
        return t == self.args.max_steps or (self.args.eval_steps > 0 and t % self.args.eval_steps == 0)

    def _reason_to_stop(self, t: int, interrupts: Interrupts) -> str | None:
        if interrupts.count:
            return f"Interrupted after iteration {t}."
        if self.control.should_training_stop:
            return f"A callback ended the run after iteration {t}."
        for rule in self.args.stop_at if self.control.should_evaluate else []:
            metric, operator, bound = parse_rule(rule)
            if OPERATORS[operator](self._last_eval[metric], bound):
                return f"Ended after iteration {t} by the rule `{rule}` ({metric} is {self._last_eval[metric]:.3g})."
        return None

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Rewards of the centre on `eval_dataset` (or on a sample of the training prompts)."""
        return self.measure()[1]

    def measure(self) -> tuple[Answers, dict[str, float]]:
        """As `evaluate`, with the answers."""
        funcs = [*self.rewards, *self.eval_only]
        with Scorer(funcs, workers=self.args.reward_workers, timeout=self.args.reward_timeout) as scorer:
            return self._centre(scorer)

    def _centre(self, scorer: Scorer) -> tuple[Answers, dict[str, float]]:
        answers = self.fleet.evaluate(
            [None], self._eval_questions, scorer, iteration=0, state=self._state_for_rewards(), on_chunk=self._on_chunk
        )
        totals = answers.total_M_P(self.weights)[0]
        metrics = answers.metrics(self.weights)
        metrics["reward_std"] = float(totals[~(totals != totals)].std()) if (totals == totals).any() else 0.0
        return answers, {f"eval/{name}": value for name, value in metrics.items()}

    def _evaluate(self, scorer: Scorer) -> None:
        step = self.state.global_step
        answers, metrics = self._centre(scorer)
        self._check_rules(metrics)
        self._last_eval = metrics
        self._first_eval = self._first_eval or metrics
        write_lines(self.folder.completions(f"eval-{step}"), answers.rows(self.weights))
        self.folder.append_metrics({"step": step, **metrics})
        self.progress.evaluated(step, metrics)
        self.state.log_history.append({"step": step, **metrics})
        self._call("on_log", logs={name.replace("eval/", "eval_", 1): value for name, value in metrics.items()})
        self._call("on_evaluate", metrics=metrics)

    def _check_rules(self, metrics: Mapping[str, float]) -> None:
        for rule in self.args.stop_at:
            if (metric := parse_rule(rule)[0]) not in metrics:
                raise ConfigError(f"stop_at: there is no metric {metric!r} at evaluation; there are: {', '.join(metrics)}.")

    # --- starting, resuming, saving -----------------------------------------------------------------------------------

    def _header(self) -> dict[str, Any]:
        base = {**self.engine.describe(), "digest": self.fleet.digest()}
        return record.header(base, self.args.learning_part(), software())

    def _start(self) -> Journal:
        write_text(self.folder.path / "config.resolved.yaml", to_yaml(self.args))
        write_text(self.folder.path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        return Journal.create(self.folder.path, self._header())

    def _resume(self) -> Journal:
        """Rebuild the centre by repeating the journal's updates, and check every digest."""
        journal, note = Journal.read(self.folder.path)
        if note:
            self.progress.note(note)
        record.same_learning(journal.header, self._header())
        for it in journal.iterations:
            self.fleet.update(self.population.ask(it.t), it.coefficients_M, it.learning_rate)
            if self.fleet.digest() != it.digest:
                raise JournalError(
                    f"after iteration {it.t} of {journal.path} the weights do not have the digest that the journal "
                    "gives: the journal or this machine's arithmetic is not what it was."
                )
        step = len(journal.iterations)
        self.state.global_step = step
        lines = self.folder.metrics(until=step)
        self.state.log_history = lines
        evaluations = [row for row in lines if "eval/reward" in row]
        for row in evaluations:
            self.progress.evaluated(row["step"], row)
        if evaluations:
            self._first_eval, self._last_eval = evaluations[0], evaluations[-1]
        self.state.num_input_tokens_seen = max((row.get("num_tokens", 0) for row in lines), default=0)
        self.progress.note(f"Resumed after iteration {step}: rebuilt from the base model and the journal.")
        return journal

    def save_model(self, output_dir: str | None = None) -> None:
        """Write the centre to a folder that `from_pretrained` loads."""
        folder = Path(output_dir or self.args.output_dir)
        self.fleet.save(folder)
        write_text(folder / "README.md", self._card())

    def _save(self, step: int) -> Path:
        def write(folder: Path) -> None:
            self.fleet.save(folder)
            write_text(folder / "README.md", self._card())

        return self.folder.save_checkpoint(step, write, self.args.save_total_limit)

    def _card(self) -> str:
        return model_card(
            base=self.engine.describe()["model"],
            step=self.state.global_step,
            digest=self.fleet.digest(),
            settings=self.args.to_dict(),
            rewards=[r.name for r in self.rewards],
            metrics_before=self._first_eval,
            metrics_after=self._last_eval,
            version=__version__,
        )

    # --- small things -------------------------------------------------------------------------------------------------

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        self.callback_handler.add_callback(callback)

    def _call(self, event: str, **kwargs: Any) -> None:
        self.control = self.callback_handler.call_event(event, self.args, self.state, self.control, **kwargs)

    def _batch(self, t: int) -> Questions:
        indices = draw(self.args.seed, t, self.args.prompts_per_step, len(self.train_rows))
        return self._questions([self.train_rows[n] for n in indices], [self._train_prompts[n] for n in indices], indices)

    def _questions(self, rows: Sequence[Mapping[str, Any]], prompts: Sequence[Any], indices: list[int]) -> Questions:
        names = [c for c in dataset.columns_of(rows) if c not in ("prompt", "completion", "completion_ids")]
        columns = {name: [row[name] for row in rows] for name in names}
        return Questions(tuple(indices), tuple(prompts), columns)

    def _sample_of_training(self) -> list[int]:
        return list(range(min(len(self.train_rows), _EVAL_WITHOUT_SET)))

    def _state_for_rewards(self) -> dict[str, Any]:
        return {"global_step": self.state.global_step, "max_steps": self.args.max_steps}

    def _on_chunk(self, done: int, total: int, completions: Sequence[Any]) -> None:
        self.progress.chunk(done, total, sum(len(c.ids) for c in completions))

    def _metrics(self, t: int, answers: Answers, norm: float) -> dict[str, float]:
        self.state.num_input_tokens_seen += answers.tokens()
        return {
            **answers.metrics(self.weights),
            "num_tokens": self.state.num_input_tokens_seen,
            "learning_rate": self.args.alpha,
            "es/sigma": self.args.sigma,
            "es/update_norm": norm,
            "tokens_per_second": answers.new_tokens / max(answers.seconds.get("generate", 0.0), 1e-9),
            **{f"time/{name}": seconds for name, seconds in answers.seconds.items()},
        }

    def _log(self, metrics: Mapping[str, float]) -> None:
        self.state.log_history.append({"step": self.state.global_step, **metrics})
        self._call("on_log", logs=dict(metrics))

    def _facts(self) -> list[tuple[str, str]]:
        a, about = self.args, self.engine.describe()
        mirrored = " in mirrored pairs" if a.antithetic else ""
        prompts = a.prompts_per_step or len(self.train_rows)
        return [
            ("model", f"{about['model']}, {about['parameters'] / 1e6:.1f}M parameters, {about['moved'] / 1e6:.1f}M move"),
            ("population", f"{a.population_size} members{mirrored} × {prompts} prompts, sigma {a.sigma:g}, alpha {a.alpha:g}"),
            ("reward", ", ".join(r.name for r in self.rewards)),
            ("output", a.output_dir),
        ]

    def _summary(self, why: str, checkpoint: Path, interrupted: bool) -> Summary:
        def rows_at(step: float | None) -> list[dict[str, Any]]:
            return read_lines(self.folder.completions(f"eval-{step}")) if step is not None else []

        steps = [row["step"] for row in self.state.log_history if "eval/reward" in row]
        commands = [f'seedtune generate {checkpoint} "your prompt"']
        if interrupted:
            commands.insert(0, f"seedtune train --config {self.args.output_dir}/config.resolved.yaml --resume")
        return Summary(
            why,
            rows_at(steps[0] if steps else None),
            rows_at(steps[-1] if steps else None),
            self._first_eval,
            self._last_eval,
            self.held_out,
            self.args.output_dir,
            str(checkpoint),
            commands,
        )


def _rewards(funcs: RewardFuncs | None) -> list[Reward]:
    if funcs is None:
        return []
    given = [funcs] if isinstance(funcs, str) or callable(funcs) else list(funcs)
    rewards = [Reward(f) for f in given]
    for reward in rewards:
        if not callable(reward.function):
            raise RewardError(f"a reward function is a callable or a text that names one; got {reward.source!r}.")
    return rewards


def _engine(
    model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, args: ESConfig
) -> tuple[Engine, PreTrainedTokenizerBase]:
    name = model if isinstance(model, str) else str(getattr(model.config, "_name_or_path", "") or "model")
    if isinstance(model, str):
        loaded, own = models.load(
            model, revision=args.model_revision, trust_remote_code=args.trust_remote_code, dtype=DTYPES[args.dtype]
        )  # fmt: skip
        tokenizer = tokenizer or own
    else:
        loaded = model
        tokenizer = tokenizer or models.tokenizer_of(name)
    engine = HFEngine(
        loaded,
        tokenizer,
        name=name,
        seed=args.seed,
        sigma=args.sigma,
        dtype=args.dtype,
        device=args.device,
        scope=args.scope,
        noise=args.noise,
        restore=args.restore,
        rule=update_rule(args),
        threads=args.threads,
        chat_template_kwargs=args.chat_template_kwargs,
    )
    return engine, tokenizer


def update_rule(args: ESConfig) -> update.UpdateRule:
    """The update rule that the settings describe."""
    return update.UpdateRule(
        args.optimizer,
        args.adam_beta1,
        args.adam_beta2,
        args.adam_epsilon,
        args.weight_decay or args.anchor_decay,
        anchored=args.anchor_decay > 0,
    )
