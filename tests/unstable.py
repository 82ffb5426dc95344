"""Data that do not print alike twice, and their digest: by themselves, for processes that need nothing else."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image

from seedtune.data.digest import DataDigest


@dataclass
class Case:
    tests: set
    seen: object = field(default=None, compare=False)


class Opaque:
    """Prints its address, as objects do."""

    def __init__(self, held=0):
        self.held = held


#: What does not print alike twice, or is cut short in print; made anew at every call.
UNSTABLE = {
    "set": lambda: {"one", "two", "three", "four"},
    "set of tuples": lambda: frozenset((name, frozenset(name)) for name in ("one", "two", "three")),
    "nested": lambda: {"a": [{"deep": {"one", "two", "three"}}]},
    "keys": lambda: {1: "a", "1": "b", (2, 3): {"one", "two"}, None: "c", frozenset({"x", "y", "z"}): 0},
    "mapping": lambda: MappingProxyType({"k": {"one", "two", "three"}}),
    "keys of a class": lambda: Case({(1, "a"), (2, "b")}, seen=object()),
    "array": lambda: np.arange(5000) / 7,
    "array of objects": lambda: np.array([{"one", "two", "three"}, None, "text"], dtype=object),
    "array of text": lambda: np.array(["one", "a longer one"], dtype=np.dtypes.StringDType()),
    "tensor": lambda: torch.arange(5000) / 7,
    "bfloat16": lambda: torch.ones(3, dtype=torch.bfloat16),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "scalar": lambda: torch.tensor(1.5),
    "image": lambda: Image.new("RGB", (4, 3), (1, 2, 3)),
    "palette": lambda: Image.new("P", (4, 3), 7),
    "deque": lambda: deque([{"one", "two", "three"}]),
    "dataclass": lambda: Case({"one", "two", "three"}, seen=object()),
    "memory": lambda: memoryview(b"abc"),
    "values": lambda: {"a": {"one", "two"}}.values(),
    "object": lambda: Opaque(),
    "objects in it": lambda: [{"held": (Opaque(), Opaque)}],
    "function": lambda: lambda x: x,
    "meta": lambda: torch.empty(3, device="meta"),
}


def digest(*values):
    total = DataDigest()
    for value in values:
        total.add({"prompt": "p", "column": value}, (1, 2))
    return total.hexdigest()
