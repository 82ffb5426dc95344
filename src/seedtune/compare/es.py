"""Evolution Strategies in a comparison: our own trainer."""

from __future__ import annotations

from ..report.progress import Progress
from ..training.recipe import resolve
from ..training.trainer import ESTrainer
from .checkpoints import Checkpoints, num_steps
from .context import MethodContext


def train(context: MethodContext) -> None:
    """Settings are `ESConfig`'s. The budget is rounded down to whole iterations."""
    fixed = {
        "output_dir": str(context.folder / "run"),
        "eval_steps": 0,
        "drift_samples": 0,
        "load_best_model_at_end": False,
        "save_only_model": True,
        "seed": context.seed,
    }
    settings = {"guard": False, **context.shared, **context.settings}
    args = resolve(settings, fixed)
    num_prompts = args.prompts_per_member or args.prompts_per_step or len(context.train_dataset)
    per_iteration = args.population_size * num_prompts * args.num_generations
    iterations = num_steps(context, per_iteration, "an iteration of es (population_size x prompts x num_generations)")
    args = resolve(settings, {**fixed, "max_steps": iterations})
    trainer = ESTrainer(
        model=context.model,
        reward_funcs=context.reward_funcs,
        args=args,
        train_dataset=context.train_dataset,
        tools=context.tools,
        environment_factory=context.environment_factory,
        eval_dataset=context.train_dataset[:1],
        progress=Progress(),
    )
    trainer.add_callback(Checkpoints(context, per_iteration, lambda folder: trainer.save_model(str(folder))))
    trainer.train()
