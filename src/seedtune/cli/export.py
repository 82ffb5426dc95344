"""Write a fine-tune as one small file: seeds and coefficients from which `seedtune apply` rebuilds the same bits."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from ..errors import JournalError
from ..utils.paths import local_path
from .options import refuse_unknown
from .replay import add_until

HELP = "write a fine-tune as a file of kilobytes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="the folder of a run, or its journal.jsonl")
    add_until(parser)
    parser.add_argument(
        "--patch", metavar="FILE", type=local_path, required=True, help="the file to write, e.g. fine-tune.seedtune"
    )


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    from ..training.replay import load
    from ..utils.files import write_bytes

    refuse_unknown(parsed, rest)
    patch = load(parsed.run_folder, parsed.until)
    if not len(patch):
        raise JournalError(
            f"{parsed.run_folder} hands back its base model, as no center was better: there is nothing to export. "
            "--until last exports its last center."
        )
    data = patch.to_bytes()
    write_bytes(parsed.patch, data)
    whole = checkpoint_bytes(patch.header["base"])
    print(
        f"{parsed.patch}: {len(data):,} bytes for {len(patch)} iterations of {patch.coefficients_T_N.shape[1]} "
        f"members; the weights have {whole:,} bytes as safetensors: 1 to {whole // len(data):,}."
    )
    return 0


def checkpoint_bytes(base: dict[str, object]) -> int:
    """Size of a checkpoint of the model, in bytes."""
    size = {"bfloat16": 2, "float16": 2, "float32": 4}.get(str(base["base_dtype"]), 4)
    scope: Any = base["scope"]
    weights = base.get("parameters") or sum(math.prod(shape) for _, _, shape in scope)
    return int(str(weights)) * size
