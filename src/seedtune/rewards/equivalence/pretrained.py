"""Models and tokenizers of transformers that compare answers, loaded once per process."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from ...errors import ConfigError
from ...utils.paths import local_path


def load(kind: str, name: str, auto: str) -> tuple[Any, Any]:
    """Model (by the class `auto` of transformers, from safetensors, on the CPU, float32) and tokenizer. Raises
    ConfigError, in which `kind` names the equivalence.
    """
    import torch
    import transformers

    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"equivalence: {kind} needs a model: write {{{kind}: MODEL}}; got {name!r}.")
    path = str(local_path(name)) if local_path(name).is_dir() else name
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            model = getattr(transformers, auto).from_pretrained(path, use_safetensors=True, dtype=torch.float32)
    except Exception as e:  # of whatever kind the Hub, a config or a file raises
        raise ConfigError(
            f"equivalence: {kind}: the model {name!r} cannot be loaded ({type(e).__name__}: {_first_line(e)}). Give a "
            f"Hub id, or a folder, that {auto} of transformers reads, with its tokenizer and safetensors."
        ) from e
    return model.eval(), tokenizer


def longest(model: Any, tokenizer: Any) -> int:
    """Tokens that the model reads at most; beyond them texts are cut."""
    known = (getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
    return min([int(n) for n in known if isinstance(n, int) and 0 < n < 100_000], default=512)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
