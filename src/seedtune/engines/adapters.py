"""Adapters (PEFT): merged into the model that they were trained on, before anything else. Evolution Strategies move
plain weights, and checkpoints are whole models.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from ..errors import ModelError
from ..utils.paths import local_path

log = logging.getLogger(__name__)

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


class Adapter(NamedTuple):
    """What a folder with an adapter says: which kind, and the base model that it belongs to."""

    folder: Path
    kind: str
    base: str
    revision: str | None

    @property
    def has_tokenizer(self) -> bool:
        return (self.folder / "tokenizer_config.json").is_file()


def read(name: str) -> Adapter | None:
    """The adapter in a folder, or None: it holds none. Raises ModelError for one that does not name its base."""
    folder = local_path(name)
    file = folder / CONFIG
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        base, kind = config.get("base_model_name_or_path"), str(config.get("peft_type", "adapter"))
    except (OSError, ValueError, AttributeError) as e:
        raise ModelError(f"{file} is no configuration of an adapter: {e}.") from e
    if not base:
        raise ModelError(
            f"{name!r} holds an adapter ({kind}), and its {CONFIG} names no base_model_name_or_path: merge it into its "
            "base (merge_and_unload of PEFT), and give that model."
        )
    if (folder / "config.json").is_file():
        raise ModelError(
            f"{name!r} holds both a whole model (config.json) and an adapter ({CONFIG}): move the one that you do not "
            "mean out of the folder."
        )
    if not (folder / _WEIGHTS).is_file():
        pickles = [file.name for file in folder.glob("adapter_model.*")]
        what = f"; {pickles[0]} is a pickle, which is never loaded" if pickles else ""
        raise ModelError(
            f"{name!r} holds the configuration of an adapter ({kind}), and no {_WEIGHTS}{what}: save the adapter there "
            "again (save_pretrained of PEFT)."
        )
    nested = folder / base
    return Adapter(folder, kind, str(nested if nested.is_dir() else base), config.get("revision"))


def download(name: str, revision: str | None) -> Adapter | None:
    """The adapter under a name on the Hub (when offline: in its cache), with all its files; None: there is none."""
    try:
        if Path(name).exists() or find_adapter_config_file(name, revision=revision) is None:
            return None
        return read(snapshot_download(name, revision=revision, ignore_patterns=["*.bin", "*.pt", "*.pth"]))
    except (OSError, ValueError, HfHubHTTPError):
        return None


def merge_folder(adapter: Adapter, base: PreTrainedModel) -> PreTrainedModel:
    """The base with the adapter merged into it. Raises ModelError without PEFT, and for adapters without a merge."""
    try:
        from peft import PeftModel
    except ImportError as e:
        raise ModelError(
            f"{str(adapter.folder)!r} holds an adapter ({adapter.kind}) of {adapter.base!r}, and merging it takes "
            "PEFT: pip install peft, or give a folder with the merged model (merge_and_unload, save_pretrained)."
        ) from e
    try:
        _make_room(adapter, base)
        adapted = PeftModel.from_pretrained(base, str(adapter.folder))
    except Exception as e:
        raise ModelError(
            f"PEFT cannot read the adapter in {str(adapter.folder)!r} onto {adapter.base!r}: {type(e).__name__}: {e}"
        ) from e
    return merge(adapted)


def _make_room(adapter: Adapter, base: PreTrainedModel) -> None:
    """An adapter of a model whose vocabulary grew holds whole embeddings, of more tokens than its base has."""
    ends = {
        f"{name}.weight"
        for name, module in base.named_modules()
        if module in (base.get_input_embeddings(), base.get_output_embeddings())
    }
    with safe_open(adapter.folder / _WEIGHTS, framework="pt") as weights:
        whole = [key for key in list(weights.keys()) if key.endswith(tuple(ends))]
        rows = [weights.get_slice(key).get_shape()[0] for key in whole]
    if max(rows, default=0) > len(base.get_input_embeddings().get_parameter("weight")):
        base.resize_token_embeddings(max(rows), mean_resizing=False)


def is_adapted(model: Any) -> bool:
    """Whether this is a model of PEFT, or one whose layers hold adapters."""
    return _is_peft(model) or (isinstance(model, nn.Module) and bool(_adapted_layers(model)))


def merge(model: Any) -> PreTrainedModel:
    """The model within a model of PEFT, its adapters merged: the same object from before PEFT changed it. Says so.

    Raises ModelError where they cannot be merged.
    """
    kinds = _kinds(model)
    if not _is_peft(model):
        raise ModelError(
            f"the model's layers hold adapters ({kinds}) that were loaded into it (load_adapter, add_adapter): give "
            "the adapter's folder as model, or the model of PEFT: PeftModel.from_pretrained(base, folder)."
        )
    if any(getattr(module, "disable_adapters", False) is True for module in model.modules()):
        raise ModelError(
            f"the model's adapter ({kinds}) is switched off: switch it on to have it merged (enable_adapter_layers), "
            "or give the model without it (unload)."
        )
    if not callable(getattr(model, "merge_and_unload", None)):
        raise ModelError(
            f"the model has an adapter of PEFT ({kinds}) that cannot be merged into its weights, and only those move: "
            "give the base model, or an adapter with merge_and_unload (LoRA, for one)."
        )
    try:
        merged: PreTrainedModel = model.merge_and_unload()
    except Exception as e:
        raise ModelError(f"PEFT cannot merge the adapter ({kinds}) into its model: {type(e).__name__}: {e}") from e
    log.warning(
        f"The model's adapter ({kinds}) was merged into its weights: these move, and checkpoints are whole models, "
        "without an adapter."
    )
    for parameter in merged.parameters():  # PEFT froze them, for the adapter's sake
        parameter.requires_grad_(parameter.is_floating_point())
    return merged


def _is_peft(model: Any) -> bool:
    return not isinstance(model, PreTrainedModel) and isinstance(getattr(model, "peft_config", None), Mapping)


def _adapted_layers(model: nn.Module) -> list[str]:
    """Layers that PEFT wrapped: they hold the one from before as `base_layer`."""
    return [
        name for name, module in model.named_modules() if isinstance(getattr(module, "base_layer", None), nn.Module)
    ]


def _kinds(model: Any) -> str:
    configs = getattr(model, "peft_config", None)
    kinds = {_kind(config) for config in configs.values()} if isinstance(configs, Mapping) else set()
    return ", ".join(sorted(kinds)) or "unknown"


def _kind(config: Any) -> str:
    kind = getattr(config, "peft_type", None)
    return str(getattr(kind, "value", kind) or type(config).__name__)
