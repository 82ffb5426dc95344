"""Measure a model, a run or a patch on a task or a dataset, beside the base model that it began as.

Greedy answers give the rewards; `--samples` responses a prompt, drawn at --temperature, give pass@k and the KL from the
base model (Schulman's k3, nats a token). Intervals are 95 %. A run is measured at its newest checkpoint, or rebuilt
from its journal when it has none; a patch is applied to its base. Both are measured on what they were trained for,
unless --task or --dataset_name says otherwise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, JournalError
from ..journal.folder import write_text
from ..recipe import RunConfig, data_and_rewards, first, resolve
from .options import add_flags, given, refuse_unknown

if TYPE_CHECKING:
    from ..engines.base import Engine
    from ..evaluate.measure import Measured

HELP = "measure a model, a run or a patch on a task or a dataset"
_FLAGS = (
    "task dataset_name dataset_config dataset_train_split dataset_test_split max_eval_samples reward_funcs eval_funcs "
    "reward_weights max_completion_length "
    "temperature top_p top_k generation_batch_size chat_template_kwargs reward_workers reward_timeout model_revision "
    "trust_remote_code dtype device threads seed"
).split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hub id, folder, checkpoint, run folder, patch, or GGUF file")
    parser.add_argument("--base", metavar="MODEL", help="measured beside it; default: what a run or patch began as")
    parser.add_argument("--samples", metavar="N", type=int, default=20, help="responses a prompt (20); 0: greedy only")
    parser.add_argument("--k", metavar="K", type=int, nargs="+", default=[1, 5, 20], help="pass@k for these (1 5 20)")
    parser.add_argument("--success", metavar="X", type=float, help="a sample passes at this reward; default: its truth")
    parser.add_argument("--probe", metavar="TASK", help="a second task, to see what was forgotten")
    parser.add_argument("--json", metavar="FILE", help="also write metrics, completions and samples to FILE")
    add_flags(parser, only=_FLAGS)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    from rich.console import Console

    from .. import build
    from ..report.measured import measured
    from ..targets import located, own_settings

    refuse_unknown(rest)
    if parsed.samples < 0 or min(parsed.k) < 1:
        raise ConfigError("--samples is at least 0, and every --k at least 1.")
    flags = given(parsed)
    flags = {"temperature": 1.0, **own_settings(parsed.model, flags), **flags}
    # `subtract` keeps no master copy, and nothing is perturbed here.
    fixed = {"restore": "subtract", "drift_samples": 0}
    args = resolve({}, {**flags, **fixed})
    # A second task: greedy answers at its own length, with its own rewards.
    own = ("task", "max_completion_length", "reward_funcs", "eval_funcs", "reward_weights", "dataset_name")
    others = {key: value for key, value in flags.items() if key not in own}
    probe = resolve({}, {**others, **fixed, "task": parsed.probe}) if parsed.probe else None
    data_and_rewards(args)  # complains before a model is loaded
    for left_out in _left_out(parsed, args):
        print(f"Note: {left_out}.")
    with located(parsed.model, parsed.base) as target:
        engines: dict[str, Engine] = {"base": build.engine(target.base, None, args)} if target.base else {}
        if engines and not parsed.base and target.digest not in (None, engines["base"].describe()["digest"]):
            raise JournalError(
                f"{target.base!r} is not the model that {parsed.model} began as (its digest is not {target.digest}): "
                "say where that one is with --base, or which --model_revision it was."
            )
        engines["model"] = build.engine(target.model, None, args)
        found = _measure(engines, parsed, args, probe)
    table = {who: result.estimates for who, result in found.items()}
    Console(highlight=False).print(measured({who: r.greedy for who, r in found.items()}, table))
    if parsed.json:
        everything = {who: result.to_json() for who, result in reversed(found.items())}
        write_text(Path(parsed.json), json.dumps(everything, indent=2, default=str) + "\n")
    return 0


def _left_out(parsed: argparse.Namespace, args: RunConfig) -> list[str]:
    """What was asked for and cannot be had."""
    if not parsed.samples:
        return []
    if args.temperature == 0:
        return ["temperature 0 draws no samples, so there is neither pass@k nor KL"]
    found = [f"pass@{k} needs at least {k} samples" for k in parsed.k if k > parsed.samples]
    if args.top_p < 1 or args.top_k:
        found.append("with top_p or top_k samples are not the model's own, so there is no KL")
    return found


def _measure(
    engines: dict[str, Engine], parsed: argparse.Namespace, args: RunConfig, probe: RunConfig | None
) -> dict[str, Measured]:
    """Every engine on the task, and on the second one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ..assess import assess

    found: dict[str, Measured] = {}
    with Progress(TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), transient=True) as bar:
        shown = bar.add_task("", total=None)

        def on_rows(done: int, count: int, _: int) -> None:
            bar.update(shown, completed=done, total=count)

        for who, engine in engines.items():

            def say(text: str, who: str = who) -> None:
                bar.update(shown, description=f"{who}: {text}", completed=0, total=None)

            found[who] = assess(
                engine,
                args,
                **_rows_and_rewards(args),
                samples=parsed.samples if args.temperature > 0 else 0,
                ks=parsed.k,
                success=parsed.success,
                base=engines.get("base") if who == "model" else None,
                on_rows=on_rows,
                say=say,
            )
            if probe:
                extra = assess(engine, probe, **_rows_and_rewards(probe), on_rows=on_rows, say=say).estimates
                found[who].estimates.update({f"{parsed.probe}/{k}": e for k, e in extra.items() if "/" not in k})
    return found


def _rows_and_rewards(args: RunConfig) -> dict[str, Any]:
    parts = data_and_rewards(args)
    rows = parts["eval_dataset"] or first(parts["train_dataset"], args.max_eval_samples)
    return {"rows": rows, "reward_funcs": parts["reward_funcs"], "eval_funcs": parts["eval_funcs"]}
