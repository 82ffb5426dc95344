"""Runs of the trainer on tiny models: settings, rewards, and what is read of the folders that they leave."""

from __future__ import annotations

import logging

import torch

from seedtune import ESConfig, ESTrainer
from seedtune.report.progress import Progress
from seedtune.training.facts import facts
from tiny import save_tiny, tiny_llama, tiny_tokenizer

ROWS = [{"prompt": p, "target": "aeiounrst"} for p in ("one", "two and", "three", "four is")]


def letters(completions, target, **kwargs):
    """The share of the target letters in what was written."""
    return [sum(c.count(x) for x in t) / 12 for c, t in zip(completions, target, strict=True)]


def plain(completions, **kwargs):
    """The share of ASCII in what was written: members differ, and alike on several prompts."""
    return [sum(x < "\x80" for x in c) / 12 for c in completions]


def quiet_length(completions, **kwargs):
    return [float(len(c)) for c in completions]


def config(tmp_path, **options):
    settings = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 3,
        "population_size": 4,
        "sigma": 0.05,
        "learning_rate": 0.05,
        "max_completion_length": 12,
        "eval_steps": 2,
        "dtype": "float32",
        "device": "cpu",
        "reward_workers": 0,
        "guard": False,
        "load_best_model_at_end": False,
    }
    return ESConfig(**{**settings, **options})


def trainer(tmp_path, rows=ROWS, model=None, reward_funcs=letters, progress=None, processing_class=None, **options):
    extra = {k: options.pop(k) for k in ("callbacks", "eval_dataset", "eval_funcs", "rollout_func") if k in options}
    return ESTrainer(
        model=model or tiny_llama(),
        reward_funcs=reward_funcs,
        args=config(tmp_path, **options),
        train_dataset=rows,
        processing_class=processing_class or tiny_tokenizer(),
        progress=progress or Progress(),
        **extra,
    )


def head_of(made):
    """What the head of a trainer's run says: names and lines."""
    names = [reward.name for reward in made.rewards]
    return facts(made.args, made.engine, names, 1, str(made.run.folder.path))


class Notes(Progress):
    """Keeps what the logger `seedtune` says, until the run is over."""

    def __init__(self):
        super().__init__()
        self.texts = []
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.texts.append(record.getMessage())
        logging.getLogger("seedtune").addHandler(self.handler)
        logging.getLogger("seedtune").setLevel(logging.INFO)

    def stop(self):
        logging.getLogger("seedtune").removeHandler(self.handler)


def journal_of(tmp_path, name="run"):
    return (tmp_path / name / "journal.jsonl").read_bytes()


def without_times(lines):
    return [{k: v for k, v in line.items() if not k.startswith("time/") and k != "tokens_per_second"} for line in lines]


def trained(tmp_path, name="run", dtype=torch.float32, **options):
    """A run on a model that lies in a folder; returns the run's folder."""
    base = tmp_path / "base"
    if not base.exists():
        save_tiny(base, dtype=dtype)
    trainer(tmp_path, model=str(base), output_dir=str(tmp_path / name), **options).train()
    return tmp_path / name


def weights(folder):
    return (folder / "model.safetensors").read_bytes()
