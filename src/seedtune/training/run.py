"""A run on disk: started, resumed, recorded, saved. What the trainer knows of files is here."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import __version__
from ..config.es_config import ESConfig
from ..config.yaml_file import to_yaml
from ..data.prompts import Prompts
from ..engines.base import Weights
from ..errors import JournalError, ModelError, SaveError
from ..evaluation.hacking import Rows
from ..journal import record
from ..journal.folder import BEST, CARD, STATE, RunFolder, best_step
from ..journal.record import Iteration, Return
from ..journal.store import Journal
from ..noise import spec
from ..report.model_card import model_card
from ..report.summary import Summary
from ..rollout.fleet import Fleet
from ..rollout.rollouts import per_prompt
from ..utils.environment import environment, software
from ..utils.files import check_room, explain_disk, read_lines, save_whole, write_lines, write_text
from .calibration import Calibration
from .hub import Hub

log = logging.getLogger(__name__)


class Run:
    """The folder, the journal and the history of one run. `data` is the digest of the training data."""

    def __init__(self, args: ESConfig, weights: Weights, fleet: Fleet, rewards: list[str], data: str) -> None:
        self.args, self.weights, self.fleet, self.rewards, self.data = args, weights, fleet, rewards, data
        self.folder = RunFolder(args.output_dir)
        self.history: list[dict[str, Any]] = []
        self.hub = Hub(args) if args.push_to_hub else None
        self.calibration: Calibration | None = None
        self.settings = args  # as given: `sigma: auto` where `args` has the number
        self._journal: Journal | None = None
        self._applied: list[int] = []

    @property
    def journal(self) -> Journal:
        assert self._journal is not None, "start or resume the run first"
        return self._journal

    @property
    def step(self) -> int:
        """Iterations done."""
        return len(self._journal.iterations) if self._journal else 0

    def open(self, resume: bool) -> None:
        """Claim the folder, and check that a checkpoint can be written into it, and to the Hub, before anything is
        computed.

        Raises RunFolderError as `RunFolder.claim`, SaveError where the disk would not take a checkpoint, ModelError
        for a model (or a tokenizer) that cannot be saved, and HubError.
        """
        self.folder.check(resume)
        if not resume and self._applied:
            self._start_over()
        self.folder.claim(resume)
        with self.folder.draft() as draft, explain_disk(self.folder.path):
            self.weights.check_save(Path(draft))
        size = self.weights.checkpoint_size(state=not self.args.save_only_model)
        check_room(self.folder.path, size, "a checkpoint")
        self._warn_of_many_checkpoints(size)
        if self.hub:
            self.hub.open()

    def _warn_of_many_checkpoints(self, size: int) -> None:
        a, free = self.args, shutil.disk_usage(self.folder.path).free
        every = a.save_steps if a.save_strategy == "steps" else 0
        count = min(a.max_steps // every if every else 1, (a.save_total_limit or a.max_steps) + 1)
        if count * size > free:
            log.warning(
                f"up to {count} checkpoints of {size / 2**20:.0f} MB will be kept, and the disk of {self.folder.path} "
                f"has {free / 2**20:.0f} MB free: set save_total_limit, save_steps, or save_only_model."
            )

    def _start_over(self) -> None:
        """Be a new run. Raises ModelError where the base model was not kept to start it from."""
        try:
            self.fleet.reset()
        except ModelError as e:
            raise ModelError(
                "this trainer has moved the weights already, and did not keep the base model to begin again from: make "
                "a new trainer (of a model object: load that again)."
            ) from e
        self.history, self._journal, self._applied = [], None, []
        log.warning("This trainer had moved the weights already: the new run begins with the base model again.")

    def start(self) -> None:
        """Write what is known before the first iteration, into the folder that was opened."""
        if self.weights.is_changed and self.args.restore == "exact":  # otherwise it cannot be replayed anyway
            name = self.weights.describe()["model"]
            told = (
                "The base is a model object that is not what is stored under its name, %s: it is kept in %s, so that "
            )
            log.warning(told + "the run can be replayed.", name, self.folder.base)
            save_whole(self.folder.base, self.weights.save_base)
        write_text(self.folder.path / "config.resolved.yaml", to_yaml(self.settings))
        known = {**environment(), "engines": {"1": self.args.engine}}  # from which iteration on which one decodes
        write_text(self.folder.path / "environment.json", json.dumps(known, indent=2) + "\n")
        self._journal = Journal.create(self.folder.path, self._header())

    def resume(self) -> None:
        """Rebuild the center by repeating the journal's updates, and check every digest on the way; the folder was
        opened.
        """
        journal, torn = Journal.read(self.folder.path)
        if torn:
            log.warning("%s.", torn)
        if self.args.uses_lora_adapters and (journal.header["config"]["scope"], self.args.scope) == ("all", "linear"):
            raise JournalError(
                "this run moves more than linear layers (scope: all), and vLLM's adapters carry nothing else: go on "
                "with engine: hf."
            )
        record.check_same_trajectory(journal.header, self._header(), self.args.trajectory_defaults())
        if max(self._applied, default=0) > len(journal.iterations):
            raise JournalError(
                f"this process holds an update that {journal.path} does not (writing it failed): make a new trainer, "
                "and resume with that."
            )
        self._rebuild(journal, journal.center)
        self._journal = journal
        self.history = self.folder.metrics(until=self.step)
        self._warn_of_other_rewards()
        write_text(self.folder.path / "config.resolved.yaml", to_yaml(self.settings))  # max_steps may be new
        self._note_engine()
        self._take_threads()
        log.info("Resumed after iteration %d.", self.step)

    def _warn_of_other_rewards(self) -> None:
        """Functions are no settings in Python, and a resume may go on with others on purpose."""
        last = (self.iterations or [{}])[-1]
        means = [re.fullmatch(r"rewards/(.*)/mean", name) for name in last]
        before = [mean[1] for mean in means if mean]
        if before and before != self.rewards:
            log.warning(
                f"Up to iteration {self.step} the rewards were {', '.join(before)}, from now on "
                f"{', '.join(self.rewards)}."
            )

    def become(self, t: int) -> None:
        """Make the center what it was after iteration `t`; 0: the base model. Raises ModelError where that was not
        kept.
        """
        self._rebuild(self.journal, t)

    def _rebuild(self, journal: Journal, t: int) -> None:
        """From what this process has applied already, where that is on the way; else from a checkpoint, or the base."""
        path = journal.trajectory(t)
        steps = [it.t for it in path]
        if self._applied != steps[: len(self._applied)]:
            self.fleet.reset()
            self._applied = []
        if not self._applied:
            self._applied = steps[: self._from_checkpoint(path)]
        for it in path[max(len(self._applied) - 1, 0) :]:
            if it.t not in self._applied:
                self.fleet.update(it.t, it.coefficients_M, it.learning_rate)
                self._applied.append(it.t)
            if self.fleet.digest() != it.digest:
                raise JournalError(
                    f"after iteration {it.t} of {journal.path} the weights do not have the digest that the journal "
                    "gives: the journal, or this machine's arithmetic, is not what it was."
                )

    def _note_engine(self) -> None:
        """Log, and write into `environment.json`, that another engine decodes from now on."""
        file = self.folder.path / "environment.json"
        try:
            known = json.loads(file.read_text())
            before = [*known["engines"].values()][-1]
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
            return
        if before != self.args.engine:
            log.warning(
                f"Up to iteration {self.step} engine: {before} decoded, from now on {self.args.engine}. They round "
                "differently, so completions, and with them rewards before and after, differ a little for that alone."
            )
            known["engines"][str(self.step + 1)] = self.args.engine
            write_text(file, json.dumps(known, indent=2) + "\n")

    def _take_threads(self) -> None:
        """Decode with as many threads as the run began with, where nobody says how many: sums are cut by them."""
        try:
            known = json.loads((self.folder.path / "environment.json").read_text())
            before, now, cores = int(known["torch_threads"]), torch.get_num_threads(), environment()["cores"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        on_cpu = self.args.device == "cpu" or not torch.cuda.is_available()
        if before == now or self.args.threads or not on_cpu or (self.args.fleet, self.args.engine) != ("local", "hf"):
            return
        told = f"The run began with {before} thread{'s' * (before > 1)}, which decide how sums are rounded"
        if before > cores:
            log.warning(
                f"{told}; this machine has {cores}: completions, and their rewards, may differ a little from now on."
            )
            return
        torch.set_num_threads(before)
        log.warning(f"{told}: it goes on with as many, not {now}. To change that, set threads.")

    def _from_checkpoint(self, path: list[Iteration]) -> int:
        """Start from the newest checkpoint that holds a state on the path; how many iterations of it that saves."""
        counts = {it.t: count for count, it in enumerate(path, 1)}
        for checkpoint in reversed(self.folder.checkpoints()):
            t, file = int(checkpoint.name.removeprefix("checkpoint-")), checkpoint / STATE
            if not file.exists() or t not in counts:
                continue
            updates = [(it.t, it.coefficients_M, it.learning_rate) for it in path[: counts[t]]]
            if self.fleet.load_state(file, path[counts[t] - 1].digest, updates):
                return counts[t]
            log.warning(f"{file} is not the state after iteration {t} that the journal records; it was ignored.")
        return 0

    def _header(self) -> dict[str, Any]:
        config = {**self.args.trajectory_config(), "data": self.data}
        header = record.header(self.weights.describe(), config, software(), spec.VERSION)
        if self.calibration:
            header["calibration"] = dataclasses.asdict(self.calibration)
        return {**header, "guard": True} if self.args.guard else header

    def header_of_journal(self) -> Mapping[str, Any]:
        """The header of the run in the folder. Raises JournalError."""
        self.folder.check(resume=True)
        return Journal.read(self.folder.path, repair=False)[0].header

    def update(self, t: int, coefficients: NDArray[np.float32], learning_rate: float) -> float:
        """Apply iteration `t` to the center; returns the norm of the step. It is done when `record` has written it."""
        self._applied.append(t)
        return self.fleet.update(t, coefficients, learning_rate)

    def record(self, iteration: Iteration, metrics: Mapping[str, float], control: Mapping[str, float]) -> None:
        """An iteration counts as done when its journal line is on disk; its metrics are written before, with `control`:
        what later metrics depend on.
        """
        line = {"step": iteration.t, **metrics, "control": dict(control)}
        self.folder.append_metrics(line)
        self.journal.append(iteration)
        self.history.append(line)

    def record_evaluation(self, rows: Rows, metrics: Mapping[str, float], control: Mapping[str, int]) -> None:
        """`rows` of its completions; `control`: what decisions behind it depend on."""
        write_lines(self.folder.completions(f"eval-{self.step}"), rows)
        line = {"step": self.step, **metrics, **({"control": dict(control)} if control else {})}
        self.folder.append_metrics(line)
        self.history.append(line)

    @property
    def iterations(self) -> list[dict[str, Any]]:
        """The metrics of iterations, oldest first."""
        return [line for line in self.history if "reward" in line]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations of the center, oldest first."""
        return [line for line in self.history if "eval/reward" in line]

    def evaluation(self, step: int) -> dict[str, Any] | None:
        """The evaluation of the center after iteration `step`, if there was one."""
        return next((line for line in self.evaluations if line["step"] == step), None)

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens so far."""
        return max((line.get("num_tokens", 0) for line in self.history), default=0)

    @property
    def center(self) -> int:
        """The iteration after which the center was as it is now; 0: it is the base model."""
        return self._applied[-1] if self._applied else 0

    @property
    def best(self) -> int | None:
        """The iteration after which the center was best so far (0: the base model); None: that is not tracked."""
        return best_step(self.history)

    def go_back(self, to: int, scale: float, reason: str) -> None:
        """Return to the center after iteration `to`, for good."""
        self.journal.append(Return(self.step, to, scale, reason))
        self.become(to)

    def save(self, *, last: bool = False) -> Path:
        """`checkpoint-N`, whole or not at all; `last`: it is pushed to the Hub with the result. Raises SaveError."""

        def write(folder: Path) -> None:
            self.write_model(folder)
            if not self.args.save_only_model and self.step:
                self.weights.save_state(folder / STATE)

        checkpoint = self.folder.save_checkpoint(self.step, write, self.args.save_total_limit)
        if self.hub and not last:
            self.hub.saved(checkpoint, checkpoint)
        return checkpoint

    def push(self, model: Path, checkpoint: Path) -> None:
        """Push what the run hands back, and its last checkpoint where those are pushed. Raises HubError."""
        if self.hub:
            self.hub.push(model, f"End of training, after iteration {self.step}", checkpoint)

    def save_best(self, *, last: bool = False) -> Path:
        """The center as `checkpoint-best`, sharing the files of its own checkpoint where there is one; `last` as for
        `save`. Raises SaveError.
        """
        own = self.folder.path / f"checkpoint-{self.center}"

        def link(folder: Path) -> None:
            for file in own.iterdir():
                if file.name not in (STATE, CARD):
                    os.link(file, folder / file.name)
            write_text(folder / CARD, self._card())

        try:
            best = self.folder.save_checkpoint(BEST, link if own.is_dir() else self.write_model)
        except SaveError:  # a file system without hard links
            best = self.folder.save_checkpoint(BEST, self.write_model)
        if self.hub and not last:
            self.hub.saved(best)
        return best

    def write_model(self, folder: Path) -> None:
        """The center as a folder that `from_pretrained` loads, with a model card."""
        self.weights.save(folder)
        write_text(folder / CARD, self._card())

    def _card(self) -> str:
        before, after = self._before_and_after()
        return model_card(
            base=str(self.weights.describe()["model"]),
            step=self.center,
            digest=self.fleet.digest(),
            settings=self.args.to_dict(),
            rewards=self.rewards,
            metrics_before=before,
            metrics_after=after,
            version=__version__,
            best=self.best,
        )

    def summary(self, why: str, checkpoint: Path, prompts: Prompts, length: int, interrupted: bool) -> Summary:
        """How the run ended, from what is on disk."""
        before, after = self._before_and_after()
        shown = self.folder.given / checkpoint.relative_to(self.folder.path)
        raw = "" if prompts.conversational else " --raw"
        commands = [f'seedtune generate {shown} "your prompt" --max_completion_length {length}{raw}']
        if interrupted and "model_name_or_path" in self.args.to_dict():
            commands.insert(0, f"seedtune train --resume --output_dir {self.folder.given}")
        elif interrupted:
            commands.insert(0, "trainer.train(resume_from_checkpoint=True)")
        return Summary(
            why,
            per_prompt(self.completions(before)),
            per_prompt(self.completions(after)),
            before,
            after,
            prompts.held_out,
            str(self.folder.given),
            str(shown),
            commands,
            self.center,
            self.best,
        )

    def _before_and_after(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The first evaluation, and that of the center as it is now, or else the last; the second only where there was
        one after the first.
        """
        if not self.evaluations:
            return {}, {}
        first, *others = self.evaluations
        return first, next((line for line in others if line["step"] == self.center), others[-1] if others else {})

    def completions(self, evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of an evaluation that was recorded."""
        return read_lines(self.folder.completions(f"eval-{evaluation['step']}")) if evaluation else []
