"""Why a model cannot be loaded: which of the common causes it is, and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ModelError
from ..utils.paths import local_path


def check_place(name: str) -> None:
    """Raise ModelError for what names no model: an address, a file, or a folder without one in it."""
    place = local_path(name)
    if not name.strip():
        raise ModelError("the model's name is empty: give a Hub id, a folder or a GGUF file. Check model_name_or_path.")
    if "://" in name:
        model = "/".join(urlsplit(name).path.strip("/").split("/")[:2])
        raise ModelError(f"{name!r} is an address: give the model's Hub id, {model!r}, or a folder.")
    if place.is_file():
        raise ModelError(f"{name!r} is a file: give the folder that it lies in, {str(place.parent)!r}.")
    if place.is_dir():
        _check_folder(name, place)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name!r} (looked from {Path.cwd()}). Check model_name_or_path.")


def _check_folder(name: str, folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    within = sorted({file.parent.name for kind in ("", "adapter_") for file in folder.glob(f"*/{kind}config.json")})
    advice = f"there are models within it, {', '.join(within)}: give one of those" if within else "give one that has it"
    raise ModelError(f"the folder {name!r} holds no model, as it has no config.json: {advice}.")


def check_whole(name: str, info: Mapping[str, Any]) -> None:
    """Raise ModelError where weights are missing, which transformers fills with random numbers, or have other shapes
    than the configuration says; `info`: what `from_pretrained` says of loading.
    """
    if wrong := sorted(info["mismatched_keys"]):
        key, stored, wanted = wrong[0]
        raise ModelError(
            f"model {name!r}: {len(wrong)} weights have other shapes than its config.json says ({key}: "
            f"{tuple(stored)}, not {tuple(wanted)}): configuration and weights are not of the same model."
        )
    if missing := sorted(info["missing_keys"]):
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"model {name!r} lacks {len(missing)} of its weights ({shown}), so they would be random numbers: its files "
            "are incomplete, its config.json is another model's, or it was saved for another task (a classifier has "
            "no head that writes text)."
        )


def explain(name: str, error: Exception, instead: str) -> str:
    """The message for an error of loading; `instead`: a model that needs no network."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {type(e).__name__ for e in chain}
    text = str(error)
    if "GatedRepoError" in kinds or "gated repo" in text:
        return f"model {name!r} is gated: accept its license on its Hub page, then run `hf auth login` and try again."
    if kinds & {"RepositoryNotFoundError", "LocalEntryNotFoundError", "ConnectError", "OfflineModeIsEnabled"} or (
        isinstance(error, OSError) and not Path(name).exists()
    ):
        return (
            f"cannot find model {name!r}: it is neither a folder nor a model that the Hub (when offline: the local "
            "cache) provides. Check the spelling; a private model needs `hf auth login`. "
            f"Without a network, {instead!r} works."
        )
    if "bitsandbytes" in text and kinds & {"ImportError", "ModuleNotFoundError", "PackageNotFoundError"}:
        return f"model {name!r} is quantized by bitsandbytes, which is missing: pip install bitsandbytes"
    if "SafetensorError" in kinds or re.search(r"No such file.*\.safetensors", text):
        return (
            f"model {name!r}: a file of its weights is missing, cut off or damaged (or a pointer of Git LFS in its "
            f"place): fetch it again. ({type(error).__name__}: {text})"
        )
    if "safetensors" in text:
        return f"model {name!r} has no safetensors, and Seedtune never loads pickles: convert it first. ({text})"
    if "trust_remote_code" in text:
        return f"model {name!r} runs code of its own: read that code, then set trust_remote_code: true."
    if "backend tokenizer" in text:
        return (
            f"model {name!r} has no tokenizer that can be read: save it there (tokenizer.save_pretrained), or give one "
            f"to ESTrainer as processing_class. transformers says: {text}"
        )
    if found := re.search(r"Unrecognized configuration class.*?(\w+Config)", text, re.DOTALL):
        return (
            f"model {name!r} is no causal language model ({found[1]}): give one that writes text and reads nothing but "
            "text (a decoder), not an encoder, nor one for images or for translation."
        )
    return f"cannot load model {name!r}: {type(error).__name__}: {text}"
