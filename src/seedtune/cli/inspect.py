"""Print what a patch (or a journal) holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .export import stands_for
from .options import refuse_unknown

_SETTINGS = ("seed", "sigma", "learning_rate", "optimizer", "noise")
HELP = "print what a patch or a journal holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a patch, a journal.jsonl, or the folder of a run")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    from ..replay import load

    refuse_unknown(rest)
    patch = load(parsed.file)
    base, config = patch.header["base"], patch.header["config"]
    size = len(patch.to_bytes())
    of = f" of {base['parameters']:,}" if "parameters" in base else ""
    rank = f"rank {config['rank']}" if config["perturbation"] == "lowrank" else "full rank"
    facts = {
        "file": f"{parsed.file} ({size:,} bytes as a patch; the weights have {stands_for(base):,})",
        "base model": f"{base['model']}, digest {base['digest']}, {base['base_dtype']}",
        "moves": f"{patch.moved:,}{of} weights in {len(base['scope'])} parameters",
        "iterations": f"{len(patch)}, {patch.coefficients_T_N.shape[1]} members each, {rank}",
        "settings": ", ".join(f"{k} {config[k]}" for k in _SETTINGS if k in config),
        "coefficients": f"{abs(patch.coefficients_T_N).max():.3g} at most",
        "weights after": patch.digest(len(patch)),
        "made by": ", ".join(f"{k} {v}" for k, v in patch.header.get("software", {}).items()),
    }
    if not Path(parsed.file).is_file() or parsed.file.endswith(".jsonl"):
        facts["file"] = f"{parsed.file} (would be {size:,} bytes as a patch; the weights have {stands_for(base):,})"
    for name, value in facts.items():
        print(f"{name:14} {value}")
    return 0
