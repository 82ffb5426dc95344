"""The Hub: a run's model is pushed to a repository there, as its checkpoints are saved and at its end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, metadata_load, metadata_save
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ..config.es_config import ESConfig
from ..errors import HubError
from ..journal.folder import CARD, STATE

log = logging.getLogger(__name__)
T = TypeVar("T")

#: What a clone of the repository needs, beside a checkpoint, to go on with the run.
_OF_THE_RUN = ("journal.jsonl", "metrics.jsonl", "config.resolved.yaml", "environment.json")


class Hub:
    """The repository that the settings name; `open` makes it. By `hub_strategy` it gets the model, at the end, or also
    whenever a checkpoint is saved; with `checkpoint` and `all_checkpoints` also the newest, or every, checkpoint whole
    and the journal: then a clone of it is a folder that the run resumes in.
    """

    def __init__(self, args: ESConfig) -> None:
        self.args = args
        self.name = args.hub_model_id or Path(args.output_dir).absolute().name
        self._api = HfApi(token=args.hub_token, library_name="seedtune")

    def open(self) -> None:
        """Make the repository, unless it is there. Raises HubError: before a run starts, not at its end."""

        def make() -> str:
            url = self._api.create_repo(self.name, private=self.args.hub_private_repo, exist_ok=True)
            if self.args.hub_revision:
                self._api.create_branch(url.repo_id, branch=self.args.hub_revision, exist_ok=True)
            return str(url.repo_id)

        self.name = self._try("cannot be used", make)

    def saved(self, model: Path, checkpoint: Path | None = None) -> None:
        """A model was saved, as a checkpoint: push what the strategy says. Training goes on when that fails."""
        if self.args.hub_strategy == "end":
            return
        try:
            self.push(model, f"Training in progress: {model.name}", checkpoint)
        except HubError as e:
            log.warning("%s Training goes on; the next checkpoint is pushed as usual.", e)

    def push(self, model: Path, message: str, checkpoint: Path | None = None) -> str:
        """Commit a model's folder to the root, and the run's `checkpoint` where the strategy wants that.

        Returns the URL of the commit. Raises HubError.
        """
        files = {path.name: path for path in _files(model) if path.name != STATE}
        if checkpoint is not None and self.args.hub_strategy in ("checkpoint", "all_checkpoints"):
            files |= {path.name: path for path in _files(checkpoint.parent) if path.name in _OF_THE_RUN}
            files |= {f"{checkpoint.name}/{path.name}": path for path in _files(checkpoint)}

        def commit() -> str:
            operations: list[Any] = [CommitOperationAdd(name, self._content(path)) for name, path in files.items()]
            if checkpoint is not None and self.args.hub_strategy == "checkpoint":
                operations += [CommitOperationDelete(f"{name}/", is_folder=True) for name in self._older(checkpoint)]
            revision = self.args.hub_revision
            done = self._api.create_commit(self.name, operations, commit_message=message, revision=revision)
            return str(done.commit_url)

        url = self._try(f"did not take {model}", commit)
        log.info("Pushed %s to %s.", model, url)
        return url

    def _older(self, checkpoint: Path) -> set[str]:
        """Other checkpoints in the repository."""
        there = self._api.list_repo_files(self.name, revision=self.args.hub_revision)
        folders = {name.split("/")[0] for name in there if "/" in name}
        return {name for name in folders - {checkpoint.name} if name.startswith("checkpoint-")}

    def _content(self, path: Path) -> Path | bytes:
        """A file as it is, but that the model card names the repository."""
        if path.name != CARD:
            return path
        return path.read_text(encoding="utf-8").replace('"this folder"', f'"{self.name}"').encode()

    def _try(self, what: str, action: Callable[[], T]) -> T:
        try:
            with _no_progress_bars():
                return action()
        except Exception as e:  # of requests, of validation, of files: none of them may end a run
            text = " ".join(str(e).split())
            raise HubError(
                f"push_to_hub: the repository {self.name!r} {what}: {type(e).__name__}: {text[:400]} Check "
                "hub_model_id, the network, and that you are logged in with a token that may write (hf auth login, "
                f"hub_token, or HF_TOKEN). By hand: hf upload {self.name} FOLDER"
            ) from e


def add_to_card(folder: Path, dataset: str | None, tags: str | Sequence[str]) -> None:
    """Name a dataset, and more tags, in the model card of a folder."""
    card = folder / CARD
    about = metadata_load(card) or {}
    about["tags"] = list(dict.fromkeys([*about.get("tags", []), *([tags] if isinstance(tags, str) else tags)]))
    metadata_save(card, {**about, **({"datasets": [dataset]} if dataset else {})})


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file()]


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """They would break the live panel."""
    shown = not are_progress_bars_disabled()
    with warnings.catch_warnings():  # of an environment variable that decides
        warnings.simplefilter("ignore", UserWarning)
        disable_progress_bars()
        try:
            yield
        finally:
            if shown:
                enable_progress_bars()
