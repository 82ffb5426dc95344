"""What the head of a run says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..config.es_config import ESConfig
from ..engines.base import Engine
from ..perturb.checks import FROZEN


def facts(
    args: ESConfig, engine: Engine, rewards: Sequence[str], num_prompts: int, output_dir: str
) -> list[tuple[str, str]]:
    """A name and a line each. `num_prompts`: those that a member answers in an iteration."""
    a, about = args, engine.describe()
    rate = "auto" if a.learning_rate == "auto" else f"{a.alpha:g}"
    mirrored = ", in mirrored pairs" if a.antithetic else ""
    kind = f"rank-{a.rank}" if a.perturbation == "lowrank" else "full-rank"
    moved, size = about["moved"] / 1e6, about["parameters"] / 1e6
    cannot = "" if a.perturbation == "full" else " low-rank"
    threads = f"{a.replica_cpus} thread{'s' * (a.replica_cpus > 1)}"
    replicas = f"Ray, {a.replicas} replica{'s' * (a.replicas > 1)} of {threads}"
    still = [name for name, reason in about["left_out"].items() if reason == FROZEN]
    rest = len(about["left_out"]) - len(still)
    left_out = f"{rest} parameters that cannot move{cannot}; journal.jsonl names them"
    prompts = f"{num_prompts} prompts each per iteration"
    if a.num_generations > 1:
        prompts += f", {a.num_generations} completions of each"
    return [
        ("model", f"{about['model']}: {size:.1f}M parameters, {moved:.1f}M of them move ({about['dtype']})"),
        *([("frozen", f"{len(still)} parameters with requires_grad=False stay as they are")] if still else []),
        *([("skipped", left_out)] if rest else []),
        *([("scope", f"{a.scope}: vLLM's adapters carry linear layers")] if a.uses_lora_adapters else []),
        *[("engine", remark) for remark in engine.remarks],
        *([("quantized", _quantized(about["quantized"], a.master_dtype))] if "quantized" in about else []),
        ("population", f"{a.population_size} {kind} members{mirrored}, {prompts}"),
        ("step", f"sigma {a.sigma:g}, learning rate {rate}, {a.optimizer}"),
        ("reward", ", ".join(rewards)),
        *([("fleet", replicas)] if a.fleet == "ray" else []),
        ("output", output_dir),
    ]


def _quantized(layers: Mapping[str, str], master: str) -> str:
    kinds = ", ".join(sorted({*layers.values()}))
    return (
        f"{len(layers)} layers stay {kinds}; their master is {master}, from which they are quantized anew after an "
        "update: small steps change completions once they have added up"
    )
