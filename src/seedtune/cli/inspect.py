"""Print the contents of a patch or a journal: base model, settings, iterations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..utils.paths import local_path
from .export import checkpoint_bytes
from .options import refuse_unknown

_SETTINGS = ("seed", "sigma", "learning_rate", "optimizer", "noise")
HELP = "print the contents of a patch or a journal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a patch, a journal.jsonl, or the folder of a run")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    from ..training.replay import load

    refuse_unknown(parsed, rest)
    patch = load(parsed.file)
    base, config = patch.header["base"], patch.header["config"]
    size = len(patch.to_bytes())
    of = f" of {base['parameters']:,}" if "parameters" in base else ""
    rank = f"rank {config['rank']}" if config["perturbation"] == "lowrank" else "full rank"
    facts = {
        "file": f"{parsed.file} ({size:,} bytes as a patch; the weights have {checkpoint_bytes(base):,})",
        "base model": f"{base['model']}, digest {base['digest']}, {base['base_dtype']}",
        "in scope": f"{patch.num_perturbed:,}{of} weights in {len(base['scope'])} parameters",
        "iterations": f"{len(patch)}, {patch.coefficients_T_N.shape[1]} members each, {rank}",
        "settings": ", ".join(f"{k} {config[k]}" for k in _SETTINGS if k in config),
        "coefficients": f"{abs(patch.coefficients_T_N).max(initial=0.0):.3g} at most",
        "weights after": patch.digest(len(patch)) if len(patch) else "the base model's: no center was better",
        "made by": ", ".join(f"{k} {v}" for k, v in patch.header.get("software", {}).items()),
    }
    if not local_path(parsed.file).is_file() or parsed.file.endswith(".jsonl"):
        facts["file"] = (
            f"{parsed.file} (would be {size:,} bytes as a patch; the weights have {checkpoint_bytes(base):,})"
        )
    for name, value in facts.items():
        print(f"{name:14} {value}")
    return 0
