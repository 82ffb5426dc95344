"""The transformers engine on a tiny model, and prompts for it."""

from __future__ import annotations

import torch

from seedtune.engines.base import Sampling
from seedtune.engines.hf.engine import HFEngine
from specs import specs
from tiny import tiny_llama, tiny_tokenizer

GREEDY = Sampling(12)
WORDS = ["a", "shared beginning, then this", "shared beginning, and that much longer end of it", "shared", "middle one"]
SHARED = ["shared beginning, " + word for word in ("a", "bb", "then something longer", "dddd")]


def engine(model=None, **options):
    options = {"dtype": "float32", "sigma": 0.05, "seed": 1, "device": "cpu", **options}
    return HFEngine(model or tiny_llama(), tiny_tokenizer(), *specs(**options))


def alone(e, prompt, steps=12):
    """The reference: no batch, no padding, no cache."""
    ids, new = torch.tensor([prompt.ids]), []
    for _ in range(steps):
        with torch.no_grad():
            token = int(e.model(ids, use_cache=False).logits[0, -1].argmax())
        if token in e.texts.stops:
            break
        new.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return tuple(new)


def attached_state(model):
    """The attributes of every module, and how many hooks it has."""
    return {
        name: {key: len(value) if "hooks" in key else None for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }
