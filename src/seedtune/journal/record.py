"""The lines of a journal. Floats are exact (hexadecimal); every line is chained to the one before by SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import JournalError

FORMAT = 1
ROOT = "0" * 16


@dataclass(frozen=True)
class Iteration:
    """What iteration `t` did: enough to repeat its update without a generation. Members in `dropped` were left out of
    it, by a fleet that does not wait for stragglers; their reward is NaN and their coefficient 0.
    """

    t: int
    rewards_M: tuple[float, ...]
    coefficients_M: NDArray[np.float32]
    learning_rate: float
    prompts: tuple[int, ...]
    digest: str
    dropped: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        line = {
            "kind": "iteration",
            "t": self.t,
            "rewards": [float(r).hex() for r in self.rewards_M],
            "coefficients": [float(c).hex() for c in self.coefficients_M],
            "learning_rate": float(self.learning_rate).hex(),
            "prompts": list(self.prompts),
            "digest": self.digest,
        }
        return {**line, "dropped": list(self.dropped)} if self.dropped else line

    @staticmethod
    def from_json(line: Mapping[str, Any]) -> Iteration:
        return Iteration(
            t=int(line["t"]),
            rewards_M=tuple(float.fromhex(r) for r in line["rewards"]),
            coefficients_M=np.array([float.fromhex(c) for c in line["coefficients"]], dtype=np.float32),
            learning_rate=float.fromhex(line["learning_rate"]),
            prompts=tuple(line["prompts"]),
            digest=str(line["digest"]),
            dropped=tuple(line.get("dropped", ())),
        )


def seal(line: Mapping[str, Any], previous: str) -> tuple[str, str]:
    """The text of a line, with its chain: the first 16 digits of SHA-256(previous chain + line); and that chain."""
    body = json.dumps(line, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    chain = hashlib.sha256((previous + body).encode()).hexdigest()[:16]
    return f'{body[:-1]},"chain":"{chain}"}}\n', chain


def unseal(text: str, previous: str) -> tuple[dict[str, Any], str]:
    """The line and its chain. Raises ValueError when the text is damaged or does not follow `previous`."""
    line = json.loads(text)
    if not isinstance(line, dict):
        raise ValueError("it is not an object")
    chain = line.pop("chain")
    if seal(line, previous)[1] != chain:
        raise ValueError("its checksum does not match")
    return line, chain


def same_learning(header: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise JournalError when a run is resumed with another learning setting, or another base model. A setting that the
    header lacks (it is newer than the run) has its default.
    """
    header = {**header, "config": {**{k: v for k, v in defaults.items() if k in now["config"]}, **header["config"]}}
    for part in ("config", "base", "noise_version"):  # a setting first: what it changes in the base is a consequence
        before, after = header[part], json.loads(json.dumps(now[part]))
        if not isinstance(before, dict):
            before, after = {part: before}, {part: after}
        changed = [k for k in {**before, **after} if before.get(k) != after.get(k) and k != "model"]  # its digest says
        if changed:
            key = changed[0]
            raise JournalError(
                f"this run was started with {key} = {_short(before.get(key))} and would go on with "
                f"{_short(after.get(key))}; the weights depend on it, so it cannot change on --resume. "
                "Use the run's own config.resolved.yaml, or another output_dir for a new run."
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:79] + "…"


def header(base: Mapping[str, Any], config: Mapping[str, Any], software: Mapping[str, str]) -> dict[str, Any]:
    """The first line. `config` is the learning part, resolved; `base` names the model, its digest, dtypes and scope."""
    return {
        "kind": "header",
        "format": FORMAT,
        "noise_version": 1,
        "base": dict(base),
        "config": dict(config),
        "software": dict(software),
    }


def check_header(line: Mapping[str, Any], path: str) -> None:
    """Raise JournalError unless this is a header that this version reads."""
    if line.get("kind") != "header":
        raise JournalError(f"{path} does not begin with a journal's header: it is not a Seedtune journal.")
    if line.get("format") != FORMAT:
        raise JournalError(f"{path} has journal format {line.get('format')}; this version of Seedtune reads {FORMAT}.")


def contiguous(iterations: Sequence[Iteration], path: str) -> None:
    """Raise JournalError when an iteration is missing."""
    for expected, record in enumerate(iterations, 1):
        if record.t != expected:
            raise JournalError(f"{path}, line {expected + 1} is iteration {record.t}; iteration {expected} is missing.")
