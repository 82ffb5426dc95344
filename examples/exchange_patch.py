"""A fine-tune as a file of kilobytes: one trains and sends the patch, another applies it, and both have the same bytes.

python examples/exchange_patch.py
"""

from __future__ import annotations

from pathlib import Path

from seedtune.cli.main import main as seedtune

MODEL = "smollm2-135m-instruct"
TRAIN = "--task conciseness --max_steps 2 --eval_steps 2 --population_size 16 --antithetic --perturbation lowrank"


def exchange(folder: Path) -> bool:
    """Whether the weights of who trained and of who applied the patch are the same bytes."""
    run, patch, applied = folder / "run", folder / "brief.seedtune", folder / "applied"
    # Who trains. `--until last`: the last center, whether or not it is the best one.
    seedtune(["train", "--model_name_or_path", MODEL, "--output_dir", run, *TRAIN.split()])
    seedtune(["export", run, "--patch", patch, "--until", "last"])
    # Who gets the patch, and has the base model.
    seedtune(["inspect", patch])
    seedtune(["apply", patch, "--model", MODEL, "--out", applied])
    trained = run / "checkpoint-2" / "model.safetensors"
    return trained.read_bytes() == (applied / "model.safetensors").read_bytes()


if __name__ == "__main__":
    same = exchange(Path("runs/exchange"))
    print("The same bytes." if same else "They differ.")
