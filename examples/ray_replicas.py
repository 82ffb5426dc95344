"""Two replicas on this machine, by Ray. The journal is that of one replica, to the bit.

    pip install ray
    python examples/ray_replicas.py

On a cluster, give its address (`ray start --head` says it) and more replicas: docs/guides/cluster.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from seedtune import ESConfig, ESTrainer
from seedtune.tasks.registry import builtin

SETTINGS = {
    "max_steps": 2, "perturbation": "lowrank", "population_size": 16, "antithetic": True, "sigma": 0.01,
    "prompts_per_step": 4, "max_completion_length": 48, "threads": 1, "generation_batch_size": 16, "chunk_size": 16,
    "eval_steps": 2,
}  # fmt: skip


def journal(output_dir: str, **how: object) -> bytes:
    task = builtin("conciseness")
    args = ESConfig(output_dir=output_dir, **SETTINGS, **how)
    trainer = ESTrainer("smollm2-135m-instruct", list(task.rewards), args, task.train, task.test)
    trainer.train()
    return Path(output_dir, "journal.jsonl").read_bytes()


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else None
    together = journal("runs/two-replicas", fleet="ray", replicas=2, address=address)
    alone = journal("runs/one-replica")
    print("The journals are equal." if together == alone else "The journals differ.")
