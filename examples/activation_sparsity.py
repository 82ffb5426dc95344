"""Optimize what has no gradient: how many hidden units are nearly silent while the model reads given texts.

The count of silent units is a step function, so backpropagation sees nothing; Evolution Strategies only need its value.
A second reward, the log-likelihood of the same texts, holds what the model knows. Run it from the repository's root:

    python examples/activation_sparsity.py
"""

from __future__ import annotations

from typing import Any

import seedtune
from seedtune.data import load

#: A unit is silent at a token when it is below this share of the token's largest.
SILENT = 0.02


@seedtune.reads_outputs
def sparsity(hidden_states: list[tuple[Any, ...]], **_: Any) -> list[float]:
    """The share of silent units, the mean over the tokens of a completion and over the layers behind the embeddings."""
    shares = []
    for layers in hidden_states:
        size_L = [layer.abs() for layer in layers[1:]]  # each [tokens, hidden]
        silent = [(size < SILENT * size.amax(-1, keepdim=True)).float().mean() for size in size_L]
        shares.append(float(sum(silent) / len(silent)))
    return shares


if __name__ == "__main__":
    trainer = seedtune.ESTrainer(
        model="smollm2-135m-instruct",
        reward_funcs=[sparsity, "log_likelihood"],
        args=seedtune.ESConfig(
            output_dir="runs/sparsity",
            max_steps=10,
            eval_steps=5,
            perturbation="lowrank",
            population_size=32,
            antithetic=True,
            prompts_per_member=2,
            fitness_shaping="pairs",
            sigma=0.01,
            reward_weights=[10, 1],
        ),
        train_dataset=load("recipes/opposites_train.jsonl"),
    )
    trainer.train()
