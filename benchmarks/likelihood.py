"""Log-likelihood as fitness, SmolLM2-135M-Instruct:

    python benchmarks/likelihood.py throughput   # reading completions, over decoding the same tokens
    python benchmarks/likelihood.py run          # 200 iterations of the recipe: seconds, held-out loss
    python benchmarks/likelihood.py mezo         # accuracy against steps: MeZO (N = 2), and larger populations
    python benchmarks/likelihood.py sft          # against TRL's SFTTrainer at equal seconds, with the memory of both

* throughput: completion tokens per second for 2, 8, 32 and 128 rows in a chunk (members of low rank, one prompt of 24
  tokens and 32 tokens of completion each), read and decoded in turn; medians over rounds.
* mezo: 200 sentences made of templates, "positive" or "negative"; accuracy is the share of held-out sentences whose
  label is likelier than the other. All arms read equally many rows; a step of N = 2 is MeZO's (arXiv 2305.17333).
* sft: both train for `--seconds` on the same rows, each in a process of its own, whose peak resident set is told; the
  loss is that of held-out completions, measured by Seedtune.

`--iterations` and `--seconds` make any of it smaller.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

import seedtune
from common import report
from seedtune import ESConfig, ESTrainer
from seedtune.config import yaml_file
from seedtune.data import load
from seedtune.engines import loading
from seedtune.engines.base import Prompt, Sampling
from seedtune.engines.hf.engine import HFEngine
from seedtune.engines.specs import ModelSpec
from seedtune.es.population import Population
from seedtune.evaluation import EvalSpec, evaluate
from seedtune.perturb.perturbation import PerturbationSpec

ROOT = Path(__file__).parents[1]
TRAIN, TEST = ROOT / "recipes" / "opposites_train.jsonl", ROOT / "recipes" / "opposites_test.jsonl"
PROMPT_TOKENS, TOKENS = 24, 32
#: Of the recipe, about: a run is told how many iterations it has, as steps depend on that.
SECONDS_PER_ITERATION = 3.2


def throughput(rounds: int) -> dict[str, float]:
    spec = ModelSpec(loading.EMBEDDED)
    engine = HFEngine(*loading.load(spec), spec, PerturbationSpec(seed=1, sigma=0.01, perturbation="lowrank"))
    assert engine.decoder is not None
    engine.decoder.stops = torch.tensor([], dtype=torch.long)  # every row has all its tokens
    words = "the rain on the roof of the old house was loud that night and nobody slept until it stopped ".split()
    results = {}
    for rows in (2, 8, 32, 128):
        members = Population(max(rows, 2), antithetic=True).ask(1)
        texts = [" ".join(random.Random(n).sample(words * 4, 40)) for n in range(rows)]
        prompts = [Prompt(p.content, p.ids[:PROMPT_TOKENS]) for p in engine.encode(texts, TOKENS)]
        engine.set_members(members)
        decoded = engine.generate(prompts, Sampling(TOKENS), 0)
        given = [Prompt(p.content, p.ids, (engine_text(c.ids),)) for p, c in zip(prompts, decoded, strict=True)]
        seconds: dict[str, list[float]] = {"read": [], "decode": []}
        for _ in range(rounds):
            for name, work in (
                ("read", lambda given=given: list(engine.read(given))),
                ("decode", lambda prompts=prompts: engine.generate(prompts, Sampling(TOKENS), 0)),
            ):
                began = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - began)
        speeds = {name: rows * TOKENS / statistics.median(taken) for name, taken in seconds.items()}
        results |= {f"{name}_tokens_per_second_{rows}_rows": speed for name, speed in speeds.items()}
        results[f"read_over_decode_{rows}_rows"] = speeds["read"] / speeds["decode"]
    return results


def engine_text(ids: tuple[int, ...]) -> Any:
    from seedtune.engines.base import GivenText

    return GivenText("", "", ids)


def run(iterations: int) -> dict[str, float]:
    settings = yaml_file.read(ROOT / "recipes" / "likelihood-smollm2.yaml")
    names = {f for f in ESConfig.__dataclass_fields__ if f in settings}
    with tempfile.TemporaryDirectory() as folder:
        args = auto({name: settings[name] for name in names}, folder, iterations)
        trainer = ESTrainer(loading.EMBEDDED, "log_likelihood", args, load(TRAIN), load(TEST))
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        losses = [line["eval/completions/loss"] for line in trainer.run.evaluations]
    return {"iterations": trainer.run.step, "seconds": seconds, "loss_before": losses[0], "loss_best": min(losses),
            "loss_after": losses[-1]}  # fmt: skip


def auto(settings: dict[str, Any], folder: str, iterations: int) -> ESConfig:
    """The settings of a run that chooses its steps."""
    from seedtune.config.auto import with_auto

    every = max(1, iterations // 10)
    return ESConfig(**with_auto({**settings, "output_dir": folder, "max_steps": iterations, "eval_steps": every}))


# --- accuracy against steps -------------------------------------------------------------------------------------------

THINGS = ("The soup", "Her speech", "The hotel", "This phone", "The second act", "Their service", "The walk",
          "His book", "The concert", "The new road")  # fmt: skip
SAID = {
    "positive": ("was a delight", "made everybody smile", "exceeded what I had hoped for", "was worth every minute",
                 "is the best I know", "was kind and quick", "left me full of joy", "works like a charm",
                 "was warm and generous", "deserves a prize"),
    "negative": ("was a letdown", "made everybody yawn", "fell short of what I had hoped for", "was a waste of time",
                 "is the worst I know", "was rude and slow", "left me full of anger", "breaks all the time",
                 "was cold and careless", "deserves no thanks"),
}  # fmt: skip


def sentences() -> list[dict[str, Any]]:
    """Two hundred, half of each kind, shuffled. As messages: a text would have to end with a token that an instruct
    model hardly ever writes there, and its log-probability would drown that of the label.
    """
    other = {"positive": "negative", "negative": "positive"}
    rows: list[dict[str, Any]] = [
        {
            "prompt": [{"role": "user", "content": f"{thing} {what}. Is this positive or negative?"}],
            "chosen": label.capitalize(),
            "rejected": other[label].capitalize(),
        }
        for label, phrases in SAID.items()
        for what in phrases
        for thing in THINGS
    ]
    random.Random(0).shuffle(rows)
    return rows


@seedtune.reads_outputs
def right(completion_logprobs: list[Any], rejected_logprobs: list[Any], **_: Any) -> list[float]:
    """Whether the label is likelier than the other one."""
    return [float(a.sum() > b.sum()) for a, b in zip(completion_logprobs, rejected_logprobs, strict=True)]


def mezo(rows_read: int) -> dict[str, float]:
    rows = sentences()
    results: dict[str, float] = {}
    for name, members, prompts, rate in (
        ("mezo_n2", 2, 16, 0.001),
        ("mezo_n2_fast", 2, 16, 0.004),
        ("es_n32", 32, 16, 0.004),
        ("es_n32_few_prompts", 32, 2, 0.004),
    ):
        steps = max(1, rows_read // (members * prompts))
        with tempfile.TemporaryDirectory() as folder:
            args = ESConfig(
                output_dir=folder, max_steps=steps, eval_steps=max(1, steps // 5), population_size=members,
                prompts_per_step=prompts, antithetic=True, fitness_shaping="none", sigma=0.001, learning_rate=rate,
                drift_samples=0, guard=False, load_best_model_at_end=False,
            )  # fmt: skip
            trainer = ESTrainer(
                loading.EMBEDDED, "log_likelihood", args, rows[:120], rows[120:], eval_funcs=right
            )  # fmt: skip
            trainer.train()
            for line in trainer.run.evaluations:
                results[f"{name}_accuracy_after_{line['step']}"] = line["eval/right"]
            results[f"{name}_loss"] = trainer.run.evaluations[-1]["eval/completions/loss"]
    return results


# --- against TRL's SFT ------------------------------------------------------------------------------------------------


class StopAfter(TrainerCallback):  # type: ignore[misc]  # a class without types
    """Ends training after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= time.perf_counter() - self.began > self.seconds


def sft_arm(folder: str, seconds: float) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    name = str(loading.embedded_model())
    args = SFTConfig(
        output_dir=f"{folder}/run", max_steps=100_000, per_device_train_batch_size=8, learning_rate=2e-5,
        lr_scheduler_type="constant", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    trainer = SFTTrainer(
        model, args, train_dataset=Dataset.from_list(list(load(TRAIN))), callbacks=[StopAfter(seconds)]
    )
    trainer.train()
    trainer.save_model(f"{folder}/model")
    AutoTokenizer.from_pretrained(name).save_pretrained(f"{folder}/model")


def es_arm(folder: str, seconds: float) -> None:
    args = auto({"seed": 1}, f"{folder}/run", max(1, round(seconds / SECONDS_PER_ITERATION)))
    trainer = ESTrainer(loading.EMBEDDED, "log_likelihood", args, load(TRAIN), callbacks=StopAfter(seconds))
    trainer.train()
    trainer.save_model(f"{folder}/model")


def sft(seconds: float) -> dict[str, float]:
    results = {"loss_before": held_out_loss(loading.EMBEDDED)}
    for arm in ("es_arm", "sft_arm"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, arm, "--seconds", str(seconds), "--folder", folder]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[f"{arm}_loss"] = held_out_loss(f"{folder}/model")
        results |= {f"{arm}_{name}": value for name, value in json.loads(out.splitlines()[-1]).items()}
    return results


def held_out_loss(model: str) -> float:
    spec = ModelSpec(model)
    found = evaluate(HFEngine(*loading.load(spec), spec), EvalSpec(), load(TEST), "log_likelihood")
    return found.estimates["loss"].mean


def peak_megabytes() -> float:
    """Of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "run", "mezo", "sft", "es_arm", "sft_arm"))
    parser.add_argument("--iterations", type=int, help="rounds of throughput (5); iterations of run (200)")
    parser.add_argument("--rows", type=int, default=12_800, help="rows that each arm of mezo reads")
    parser.add_argument("--seconds", type=float, default=300, help="of each arm of sft")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE", help="also write the results to FILE")
    given = parser.parse_args()
    if given.what in ("es_arm", "sft_arm"):
        (es_arm if given.what == "es_arm" else sft_arm)(given.folder, given.seconds)
        print(json.dumps({"peak_megabytes": peak_megabytes()}))
        return
    results = {
        "throughput": lambda: throughput(given.iterations or 5),
        "run": lambda: run(given.iterations or 200),
        "mezo": lambda: mezo(given.rows),
        "sft": lambda: sft(given.seconds),
    }[given.what]()
    report({name: float(np.float64(value)) for name, value in results.items()}, given.json)


if __name__ == "__main__":
    main()
