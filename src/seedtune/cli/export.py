"""Write a fine-tune as one small file: seeds and coefficients, from which `seedtune apply` rebuilds the same bits."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .options import refuse_unknown

HELP = "write a fine-tune as a file of kilobytes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="the folder of a run, or its journal.jsonl")
    parser.add_argument("--patch", metavar="FILE", required=True, help="the file to write, e.g. fine-tune.seedtune")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    from ..journal.folder import write_bytes
    from ..replay import load

    refuse_unknown(rest)
    patch = load(parsed.run_folder)
    data = patch.to_bytes()
    write_bytes(Path(parsed.patch).expanduser(), data)
    whole = stands_for(patch.header["base"])
    print(
        f"{parsed.patch}: {len(data):,} bytes for {len(patch)} iterations of {patch.coefficients_T_N.shape[1]} "
        f"members; the safetensors that it stands for have {whole:,}: 1 to {whole // len(data):,}."
    )
    return 0


def stands_for(base: dict[str, object]) -> int:
    """Bytes of the model's weights as a checkpoint."""
    size = {"bfloat16": 2, "float16": 2, "float32": 4}.get(str(base["base_dtype"]), 4)
    scope: Any = base["scope"]
    weights = base.get("parameters") or sum(math.prod(shape) for _, _, shape in scope)
    return int(str(weights)) * size
