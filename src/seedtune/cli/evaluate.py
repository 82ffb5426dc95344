"""Evaluate a model, a run or a patch on a task or a dataset, beside its base model.

Greedy completions give the rewards; `--samples` completions per prompt, sampled at --temperature, give pass@k and the
KL from the base model (Schulman's k3, nats per token). Intervals are 95 %. A run is evaluated at its best checkpoint,
at its newest where it kept no best one, or rebuilt from its journal where it has none; a patch is applied to its base.
Both are evaluated on the task that they were trained on, unless --task or --dataset_name is given.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..config.run_config import RunConfig
from ..errors import ConfigError, JournalError
from ..training.recipe import data_and_rewards, first, resolve
from ..utils.files import write_text
from ..utils.paths import local_path
from .options import MODEL, add_flags, given, refuse_unknown

if TYPE_CHECKING:
    from ..engines.base import Engine
    from ..evaluation.evaluate import Evaluation

logger = logging.getLogger(__name__)
HELP = "evaluate a model, a run or a patch on a task or a dataset"
_FLAGS = (
    "task task_args dataset_name dataset_config dataset_prompt_column dataset_train_split dataset_test_split "
    "max_eval_samples reward_funcs reward_args eval_funcs reward_weights max_prompt_length max_completion_length "
    "attn_implementation model_init_kwargs "
    "temperature top_p top_k min_p repetition_penalty stop_strings generation_kwargs generation_batch_size "
    "chat_template_kwargs skip_special_tokens reward_workers reward_batch reward_timeout model_revision "
    "trust_remote_code dtype device threads seed tools environment_factory max_tool_calling_iterations tool_timeout"
).split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--base", metavar="MODEL", help="evaluated beside it; default: the base model of the run or patch"
    )
    parser.add_argument("--samples", metavar="N", type=int, help="completions per prompt (20); 0: greedy only")
    parser.add_argument("--k", metavar="K", type=int, nargs="+", help="pass@k for these (1 5 20)")
    parser.add_argument(
        "--success", metavar="X", type=float, help="reward at which a sample passes; default: gold metric 1"
    )
    parser.add_argument("--probe", metavar="TASK", help="a second task, to see whether the model forgot it")
    parser.add_argument(
        "--json", metavar="FILE", type=local_path, help="also write metrics, completions and samples to FILE"
    )
    add_flags(parser, only=_FLAGS)


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    import rich

    from ..report.evaluation_table import evaluation_table
    from ..training import factory
    from .model_ref import own_settings, resolve_model

    refuse_unknown(parsed, rest)
    if (parsed.samples or 0) < 0 or min(parsed.k or [1]) < 1:
        raise ConfigError("--samples is at least 0, and every --k at least 1.")
    flags = given(parsed)
    flags = {"temperature": 1.0, **own_settings(parsed.model, flags), **flags}
    args = resolve({}, flags)
    # A second task: greedy completions at its own length, with its own rewards.
    own = {"task", "task_args", "max_completion_length", "dataset_name"}
    own |= {"reward_funcs", "reward_args", "eval_funcs", "reward_weights"}
    own |= {"tools", "environment_factory", "max_tool_calling_iterations", "tool_timeout"}
    others = {key: value for key, value in flags.items() if key not in own}
    probe = resolve({}, {**others, "task": parsed.probe}) if parsed.probe else None
    _settle_samples(parsed, args)
    for reason in _unavailable(parsed, args):
        logger.warning(f"{reason}.")
    with resolve_model(parsed.model, parsed.base) as target:
        engines: dict[str, Engine] = {"base": factory.inference_engine(target.base, args)} if target.base else {}
        if engines and not parsed.base and target.digest not in (None, engines["base"].describe()["digest"]):
            raise JournalError(
                f"{target.base!r} is not the base model of {parsed.model} (its digest is not {target.digest}): "
                "give that model with --base, or its --model_revision."
            )
        engines["model"] = factory.inference_engine(target.model, args)
        found = _measure(engines, parsed, args, probe)
    table = {who: result.estimates for who, result in found.items()}
    rich.print(evaluation_table({who: r.greedy for who, r in found.items()}, table))
    if parsed.json:
        everything = {who: result.to_json() for who, result in reversed(found.items())}
        write_text(parsed.json, json.dumps(everything, indent=2, default=str) + "\n")
    return 0


def _settle_samples(parsed: argparse.Namespace, args: RunConfig) -> None:
    """How many samples of which pass@k, where the flags do not say. Raises ConfigError where given completions are
    read; and, before a model is loaded, what the data and the functions raise.
    """
    from ..evaluation.evaluate import NOTHING_DRAWN, texts_read

    parts = data_and_rewards(args, evaluates=True)
    reads = bool(texts_read(parts["reward_funcs"], parts["eval_funcs"], args.reward_args))
    values = {"samples": parsed.samples or None, "k": parsed.k, "success": parsed.success}
    if reads and (asked := [f"--{name}" for name, value in values.items() if value is not None]):
        raise ConfigError(f"{', '.join(asked)}: {NOTHING_DRAWN}")
    samples, ks = (0, []) if reads else (20, [1, 5, 20])
    parsed.samples = samples if parsed.samples is None else parsed.samples
    parsed.k = parsed.k or ks


def _unavailable(parsed: argparse.Namespace, args: RunConfig) -> list[str]:
    """Why metrics that were asked for will be missing."""
    if not parsed.samples:
        return []
    if args.temperature == 0:
        return ["at temperature 0 nothing is sampled, so there is neither pass@k nor KL"]
    found = [f"pass@{k} needs at least {k} samples" for k in parsed.k if k > parsed.samples]
    if args.top_p < 1 or args.top_k or args.min_p is not None or args.repetition_penalty != 1:
        found.append(
            "with top_p, top_k, min_p or repetition_penalty samples are not the model's own, so there is no KL"
        )
    return found


def _measure(
    engines: dict[str, Engine], parsed: argparse.Namespace, args: RunConfig, probe: RunConfig | None
) -> dict[str, Evaluation]:
    """Evaluates every engine on the task, and on the second one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ..evaluation.evaluate import evaluate
    from ..training import factory

    found: dict[str, Evaluation] = {}
    with Progress(TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), transient=True) as bar:
        shown = bar.add_task("", total=None)

        def on_rows(done: int, count: int, _: int) -> None:
            bar.update(shown, completed=done, total=count)

        for who, engine in engines.items():

            def on_stage(text: str, who: str = who) -> None:
                bar.update(shown, description=f"{who}: {text}", completed=0, total=None)

            samples = parsed.samples if args.temperature > 0 else 0
            found[who] = evaluate(
                engine,
                factory.eval_spec(args, samples=samples, ks=parsed.k, success=parsed.success),
                **_rows_and_rewards(args),
                base=engines.get("base") if who == "model" else None,
                on_rows=on_rows,
                on_stage=on_stage,
            )
            if probe:
                spec = factory.eval_spec(probe)
                extra = evaluate(engine, spec, **_rows_and_rewards(probe), on_rows=on_rows, on_stage=on_stage)
                estimates = extra.estimates.items()
                found[who].estimates.update({f"{parsed.probe}/{k}": e for k, e in estimates if "/" not in k})
    return found


def _rows_and_rewards(args: RunConfig) -> dict[str, Any]:
    from ..training import factory

    parts = data_and_rewards(args, evaluates=True)
    rows = parts["eval_dataset"]
    if rows is None:
        rows = first(parts["train_dataset"], args.max_eval_samples)
    tools, rewards = factory.tools_and_rewards(
        parts["tools"], parts["environment_factory"], parts["reward_funcs"], args
    )
    return {"rows": rows, "reward_funcs": rewards, "eval_funcs": parts["eval_funcs"], "tools": tools}
