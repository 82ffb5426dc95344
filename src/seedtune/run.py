"""A run on disk: started, resumed, recorded, saved. What the trainer knows of files is here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import __version__
from .calibrate import Calibration
from .config import ESConfig
from .config_file import to_yaml
from .environment import environment, software
from .errors import JournalError
from .fleet.answers import Answers
from .fleet.local import LocalFleet
from .journal import record
from .journal.folder import RunFolder, read_lines, write_lines, write_text
from .journal.record import Iteration
from .journal.store import Journal
from .prompts import Prompts
from .report.model_card import model_card
from .report.progress import Summary

STATE = "state.safetensors"


class Run:
    """The folder, the journal and the history of one run. `data` is the digest of the training data."""

    def __init__(self, args: ESConfig, fleet: LocalFleet, rewards: list[str], data: str) -> None:
        self.args, self.fleet, self.rewards, self.data = args, fleet, rewards, data
        self.folder = RunFolder(args.output_dir)
        self.history: list[dict[str, Any]] = []
        self.calibration: Calibration | None = None
        self._journal: Journal | None = None
        self._applied = 0

    @property
    def journal(self) -> Journal:
        assert self._journal is not None, "start or resume the run first"
        return self._journal

    @property
    def step(self) -> int:
        """Iterations done."""
        return len(self._journal.iterations) if self._journal else 0

    # --- beginning ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Write what is known before the first iteration. Raises RunFolderError when the folder holds another run."""
        self.folder.claim(resume=False)
        write_text(self.folder.path / "config.resolved.yaml", to_yaml(self.args))
        known = {**environment(), "engines": {"1": self.args.engine}}  # from which iteration on which one answers
        write_text(self.folder.path / "environment.json", json.dumps(known, indent=2) + "\n")
        self._journal = Journal.create(self.folder.path, self._header())

    def resume(self, note: Callable[[str], None]) -> None:
        """Rebuild the centre by repeating the journal's updates, and check every digest on the way.

        Updates that this process has applied already (it was interrupted, and goes on) are not repeated.
        """
        self.folder.claim(resume=True)
        journal, torn = Journal.read(self.folder.path)
        if torn:
            note(f"Note: {torn}.")
        if self.args.by_adapters and (journal.header["config"]["scope"], self.args.scope) == ("all", "linear"):
            raise JournalError(
                "this run moves more than linear layers (scope: all), and vLLM's adapters carry nothing else: go on "
                "with engine: hf."
            )
        record.same_learning(journal.header, self._header(), self.args.learning_defaults())
        if self._applied > len(journal.iterations):
            raise JournalError(
                f"this process holds an update that {journal.path} does not (writing it failed): make a new trainer, "
                "and resume with that."
            )
        if not self._applied:
            self._applied = self._from_checkpoint(journal, note)
        for it in journal.iterations[max(self._applied - 1, 0) :]:
            if it.t > self._applied:
                self.fleet.update(it.t, it.coefficients_M, it.learning_rate)
                self._applied = it.t
            if self.fleet.digest() != it.digest:
                raise JournalError(
                    f"after iteration {it.t} of {journal.path} the weights do not have the digest that the journal "
                    "gives: the journal, or this machine's arithmetic, is not what it was."
                )
        self._journal = journal
        self.history = self.folder.metrics(until=self.step)
        write_text(self.folder.path / "config.resolved.yaml", to_yaml(self.args))  # max_steps and the like may be new
        self._note_engine(note)
        note(f"Resumed after iteration {self.step}.")

    def _note_engine(self, note: Callable[[str], None]) -> None:
        """Say, and write into `environment.json`, that another engine answers from now on."""
        file = self.folder.path / "environment.json"
        try:
            known = json.loads(file.read_text())
            before = [*known["engines"].values()][-1]
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
            return
        if before != self.args.engine:
            note(
                f"Note: up to iteration {self.step} engine: {before} answered, from now on {self.args.engine}. They "
                "round differently, so answers, and with them rewards before and after, differ a little for that alone."
            )
            known["engines"][str(self.step + 1)] = self.args.engine
            write_text(file, json.dumps(known, indent=2) + "\n")

    def _from_checkpoint(self, journal: Journal, note: Callable[[str], None]) -> int:
        """Start from the newest checkpoint that holds the state the journal speaks of; returns its iteration, or 0."""
        for checkpoint in reversed(self.folder.checkpoints()):
            t, file = int(checkpoint.name.removeprefix("checkpoint-")), checkpoint / STATE
            if not file.exists() or not 1 <= t <= len(journal.iterations):
                continue
            if self.fleet.load_state(file, journal.iterations[t - 1].digest, steps=t):
                self.fleet.remember([(it.t, it.coefficients_M, it.learning_rate) for it in journal.iterations[:t]])
                return t
            note(f"Note: {file} is not the state after iteration {t} that the journal speaks of; it was passed over.")
        return 0

    def _header(self) -> dict[str, Any]:
        header = record.header(self.fleet.describe(), {**self.args.learning_part(), "data": self.data}, software())
        return {**header, "calibration": self.calibration.to_json()} if self.calibration else header

    def settle(self, args: ESConfig, calibration: Calibration | None = None) -> None:
        """The settings that were open (sigma: auto) are known now."""
        self.args, self.calibration = args, calibration

    def sigma_of_journal(self) -> float:
        """The sigma that a run in the folder was started with. Raises JournalError."""
        self.folder.check(resume=True)
        journal, _ = Journal.read(self.folder.path, mend=False)
        return float(journal.header["config"]["sigma"])

    # --- going on -----------------------------------------------------------------------------------------------------

    def update(self, t: int, coefficients: NDArray[np.float32], rate: float) -> float:
        """Apply iteration `t` to the centre; returns the norm of the step. It is done when `record` has written it."""
        self._applied = t
        return self.fleet.update(t, coefficients, rate)

    def record(self, iteration: Iteration, metrics: Mapping[str, float]) -> None:
        """An iteration counts as done when its journal line is on disk; its metrics are written before."""
        line = {"step": iteration.t, **metrics}
        self.folder.append_metrics(line)
        self.journal.append(iteration)
        self.history.append(line)

    def record_evaluation(self, answers: Answers, weights: list[float], metrics: Mapping[str, float]) -> None:
        write_lines(self.folder.completions(f"eval-{self.step}"), answers.rows(weights))
        line = {"step": self.step, **metrics}
        self.folder.append_metrics(line)
        self.history.append(line)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations of the centre, oldest first."""
        return [line for line in self.history if "eval/reward" in line]

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens so far."""
        return max((line.get("num_tokens", 0) for line in self.history), default=0)

    # --- saving -------------------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """`checkpoint-N`, whole or not at all. Raises SaveError."""

        def write(folder: Path) -> None:
            self.write_model(folder)
            if not self.args.save_only_model and self.step:
                self.fleet.save_state(folder / STATE)

        return self.folder.save_checkpoint(self.step, write, self.args.save_total_limit)

    def has_checkpoint(self, step: int) -> bool:
        return any(path.name == f"checkpoint-{step}" for path in self.folder.checkpoints())

    def write_model(self, folder: Path) -> None:
        """The centre as a folder that `from_pretrained` loads, with a model card."""
        self.fleet.save(folder)
        before, after = self._first_and_last()
        card = model_card(
            base=str(self.fleet.describe()["model"]),
            step=self.step,
            digest=self.fleet.digest(),
            settings=self.args.to_dict(),
            rewards=self.rewards,
            metrics_before=before,
            metrics_after=after,
            version=__version__,
        )
        write_text(folder / "README.md", card)

    def summary(self, why: str, checkpoint: Path, prompts: Prompts, length: int, interrupted: bool) -> Summary:
        """How the run ended, from what is on disk."""
        before, after = self._first_and_last()
        raw = "" if prompts.conversational else " --raw"
        commands = [f'seedtune generate {checkpoint} "your prompt" --max_completion_length {length}{raw}']
        if interrupted and "model_name_or_path" in self.args.to_dict():
            commands.insert(0, f"seedtune train --resume --output_dir {self.folder.path}")
        elif interrupted:
            commands.insert(0, "trainer.train(resume_from_checkpoint=True)")
        return Summary(
            why,
            self.answers(before),
            self.answers(after),
            before,
            after,
            prompts.held_out,
            str(self.folder.path),
            str(checkpoint),
            commands,
        )

    def _first_and_last(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Evaluations; the last one only when there was one after the first."""
        if not self.evaluations:
            return {}, {}
        return self.evaluations[0], self.evaluations[-1] if len(self.evaluations) > 1 else {}

    def answers(self, evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of an evaluation that was recorded."""
        return read_lines(self.folder.completions(f"eval-{evaluation['step']}")) if evaluation else []
