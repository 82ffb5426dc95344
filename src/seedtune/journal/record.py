"""The lines of a journal. Floats are exact (hexadecimal); every line is chained to the one before by SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import JournalError

FORMAT = 1
ROOT = "0" * 16


@dataclass(frozen=True)
class Iteration:
    """What iteration `t` did: enough to repeat its update without generating completions. Members in `dropped` were
    left out of it, by a fleet that does not wait for stragglers; their reward is NaN and their coefficient 0. `control`
    is what decides the next iteration's sigma and learning rate, where the run itself chooses them.
    """

    t: int
    rewards_M: tuple[float, ...]
    coefficients_M: NDArray[np.float32]
    learning_rate: float
    prompts: tuple[int, ...]
    digest: str
    dropped: tuple[int, ...] = ()
    control: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Its line in the journal; floats as hexadecimal text, which loses no bit."""
        line = {
            "kind": "iteration",
            "t": self.t,
            "rewards": [float(r).hex() for r in self.rewards_M],
            "coefficients": [float(c).hex() for c in self.coefficients_M],
            "learning_rate": float(self.learning_rate).hex(),
            "prompts": list(self.prompts),
            "digest": self.digest,
        }
        if self.dropped:
            line["dropped"] = list(self.dropped)
        if self.control:
            line["control"] = {name: float(value).hex() for name, value in self.control.items()}
        return line

    @staticmethod
    def from_json(line: Mapping[str, Any]) -> Iteration:
        """From its line. Raises KeyError, TypeError or ValueError for one that is none."""
        return Iteration(
            t=int(line["t"]),
            rewards_M=tuple(float.fromhex(r) for r in line["rewards"]),
            coefficients_M=np.array([float.fromhex(c) for c in line["coefficients"]], dtype=np.float32),
            learning_rate=float.fromhex(line["learning_rate"]),
            prompts=tuple(line["prompts"]),
            digest=str(line["digest"]),
            dropped=tuple(line.get("dropped", ())),
            control={name: float.fromhex(value) for name, value in line.get("control", {}).items()},
        )


@dataclass(frozen=True)
class Return:
    """Behind iteration `t` the center went back to what it was after iteration `to` (0: the base model), and learning
    rates are `scale` times what they were from then on; `reason` is for readers.
    """

    t: int
    to: int
    scale: float
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Its line in the journal, as `Iteration.to_json`."""
        scale = float(self.scale).hex()
        return {"kind": "return", "t": self.t, "to": self.to, "scale": scale, "reason": self.reason}

    @staticmethod
    def from_json(line: Mapping[str, Any]) -> Return:
        """From its line. Raises KeyError, TypeError or ValueError for one that is none."""
        return Return(int(line["t"]), int(line["to"]), float.fromhex(line["scale"]), str(line["reason"]))


Record = Iteration | Return


def parse(line: Mapping[str, Any]) -> Record:
    """A line behind the header. Raises KeyError, TypeError or ValueError for one that is neither."""
    return Return.from_json(line) if line.get("kind") == "return" else Iteration.from_json(line)


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


#: Keys of `base` that its digest and its scope decide; they are for readers.
_IMPLIED = ("model", "left_out")

#: Keys of `base` in headers of 0.1.0, and their names now.
_RENAMED = {"quantised": "quantized"}


def check_same_trajectory(header: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise JournalError when a run is resumed with another base model, or another value of a setting that the weights
    depend on. A setting that the header lacks (it is newer than the run) has its default.
    """
    config, now = {**defaults, **header["config"]}, {**now, "config": {**defaults, **now["config"]}}
    header = {**header, "config": config, "base": {_RENAMED.get(k, k): v for k, v in header["base"].items()}}
    for part in ("config", "base", "noise_version"):  # settings first: what differs in the base may follow from them
        before, after = header[part], json.loads(json.dumps(now[part]))
        if not isinstance(before, dict):
            before, after = {part: before}, {part: after}
        changed = [k for k in {**before, **after} if before.get(k) != after.get(k) and k not in _IMPLIED]
        if changed:
            key = changed[0]
            if key == "data":
                raise JournalError(
                    f"this run was started with data = {before.get(key)}, the digest of its training rows and their "
                    f"tokens, and would go on with {after.get(key)}: a row, a column, their order or the chat template "
                    "has changed. Give the data that the run was started with, or another output_dir for a new run."
                )
            raise JournalError(
                f"this run was started with {key} = {_short(before.get(key))} and would go on with "
                f"{_short(after.get(key))}; the weights depend on it, so it cannot change on --resume. "
                "Use the run's own config.resolved.yaml, or another output_dir for a new run."
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:79] + "…"


def header(
    base: Mapping[str, Any], config: Mapping[str, Any], software: Mapping[str, str], noise_version: int
) -> dict[str, Any]:
    """The first line. `config`: the settings that the weights depend on; `base`: model, digest, dtypes, scope."""
    return {
        "kind": "header",
        "format": FORMAT,
        "noise_version": noise_version,
        "base": dict(base),
        "config": dict(config),
        "software": dict(software),
    }


def check_header(line: Mapping[str, Any], path: str) -> None:
    """Raise JournalError unless this is a header that this version reads."""
    if line.get("kind") != "header":
        raise JournalError(f"{path} does not begin with the header of a journal: it is not a Seedtune journal.")
    if line.get("format") != FORMAT:
        raise JournalError(f"{path} has journal format {line.get('format')}; this version of Seedtune reads {FORMAT}.")


def contiguous(records: Sequence[Record], path: str) -> None:
    """Raise JournalError when an iteration is missing, or another record does not stand behind its iteration."""
    done = 0
    for number, record in enumerate(records, 2):
        if isinstance(record, Iteration):
            if record.t != done + 1:
                raise JournalError(f"{path}, line {number} is iteration {record.t}; iteration {done + 1} is missing.")
            done = record.t
        elif record.t != done or (isinstance(record, Return) and not 0 <= record.to <= done):
            raise JournalError(f"{path}, line {number} does not belong behind iteration {done}: {record}.")
