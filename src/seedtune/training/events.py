"""What happens in a run, told to transformers' callbacks, and the state that they and reward functions read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl
from transformers.trainer_callback import CallbackHandler

from ..config.es_config import ESConfig
from ..errors import ConfigError, SeedtuneError
from ..journal.folder import BEST
from ..rewards.trainer_state import Snapshot
from ..utils.torch_settings import settings_kept
from . import callbacks as hooks
from .best_center import BestCenter
from .run import Run


class Events:
    """transformers' state of a run, what callbacks ask for (`control`), and the calls.

    An iteration has `prompts_per_step` of the dataset's `num_prompts` prompts. Raises ConfigError for callbacks that
    object to the settings.
    """

    def __init__(
        self,
        run: Run,
        best: BestCenter,
        callbacks: Sequence[TrainerCallback],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompts_per_step: int,
        num_prompts: int,
    ) -> None:
        self.run, self.best = run, best
        self._prompts_per_step, self._num_prompts = prompts_per_step, num_prompts
        self._parameters, self._device = int(run.weights.describe()["parameters"]), getattr(model, "device", None)
        self._in_epoch, self._saved = False, -1
        self.control = TrainerControl()
        self.state = hooks.state_of_run(run.args, prompts_per_step, num_prompts, [*callbacks, self.control])
        self.handler = CallbackHandler(callbacks, model, tokenizer, None, None)
        hooks.init_end(self.handler, self._arguments, self.state, self.control)

    def call(self, event: str, **kwargs: Any) -> None:
        """The handler's own methods clear what a callback asked for when it is done, or when training begins.

        Raises what a callback of the user's raises; SeedtuneError for one of `report_to`, ConfigError for one that
        returns something else than `control` or None.
        """
        try:
            with settings_kept():
                control = getattr(self.handler, event)(self._arguments, self.state, self.control, **kwargs)
        except Exception as e:
            if not hooks.is_of_reporter(e):
                raise
            raise SeedtuneError(
                f"report_to: {type(e).__name__} in {event}: {e}. All metrics are in metrics.jsonl, too: resume when it "
                "works again, or with report_to: none."
            ) from e
        if not isinstance(control, TrainerControl):
            raise ConfigError(f"a callback returned {control!r} from {event}: return control, or nothing.")
        self.control = control

    @property
    def _arguments(self) -> ESConfig:
        metric, more = self.best.metric, self.best.greater_is_better
        return hooks.arguments(self.run.args, self.state, metric, more, self._device)

    def train_begin(self, best: BestCenter) -> None:
        """A run begins, or goes on, whose best center is tracked there."""
        self.best = best
        self.state.log_history, self._saved, self._in_epoch = [], -1, False
        self.state.best_metric = self.state.best_global_step = None
        for line in self.run.history:
            logs = hooks.reported(line, self._epoch(line["step"]))
            self.state.log_history.append({**logs, "step": line["step"]})
        self._follow()
        self._follow_best()
        folder = self.run.folder.path / f"checkpoint-{BEST}"
        self.state.best_model_checkpoint = str(folder) if folder.is_dir() else None
        self.call("on_train_begin")

    def train_end(self) -> None:
        self.call("on_train_end")

    def last_saved(self) -> None:
        """The center after the last iteration was saved."""
        if self._saved != self.run.step:
            self.saved()
        if self._in_epoch:
            self._end_epoch()

    def step_begin(self) -> None:
        if not self._in_epoch:
            self._in_epoch = True
            self.call("on_epoch_begin")
        self.call("on_step_begin")

    def stepped(self, metrics: Mapping[str, float]) -> None:
        """The run has done one more iteration, with these metrics."""
        self._follow()
        self._log(metrics)

    def step_end(self, t: int, *, evaluation_due: bool, saving_due: bool) -> None:
        """After iteration t. Callbacks may ask for more, or for the end, as in transformers."""
        self.control.should_evaluate |= evaluation_due
        self.control.should_save |= saving_due
        self.call("on_step_end")
        if int(self._epoch(t)) > int(self._epoch(t - 1)):
            self._end_epoch()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """The center was evaluated."""
        logs = self._log(metrics)
        of_center = {name: value for name, value in metrics.items() if name.startswith("eval/")}  # their names in 0.1.0
        self.call("on_evaluate", metrics={**logs, **of_center})
        self._follow_best()  # callbacks compare the metric with the best before

    def saved(self) -> None:
        """The center was saved as a checkpoint."""
        self._saved = self.run.step
        self.call("on_save")

    def trainer_state(self) -> Snapshot:
        """What reward functions see of it."""
        return Snapshot({**vars(self.state), "log_history": [*self.state.log_history]})

    def _log(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """To callbacks, and to the history of the state; returns what they are told."""
        logs = hooks.reported(metrics, self.state.epoch)
        self.state.log_history.append({**logs, "step": self.run.step})
        self.call("on_log", logs=dict(logs))
        return logs

    def _end_epoch(self) -> None:
        self.call("on_epoch_end")
        self._in_epoch = False

    def _epoch(self, step: int) -> float:
        return step * self._prompts_per_step / self._num_prompts

    def _follow(self) -> None:
        self.state.global_step, self.state.epoch = self.run.step, self._epoch(self.run.step)
        self.state.num_input_tokens_seen = self.run.tokens
        self.state.total_flos = 2.0 * self._parameters * self.run.tokens  # forward only: Kaplan et al., 2001.08361

    def _follow_best(self) -> None:
        if self.best.found:
            self.state.best_metric, self.state.best_global_step = self.best.found.value, self.best.step
