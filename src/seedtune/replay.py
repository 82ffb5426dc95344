"""From a base model and a journal (or a patch) to the fine-tuned weights, without a single generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import build
from .config import ESConfig
from .engines.hf import HFEngine
from .errors import ConfigError, JournalError
from .es.population import Population
from .journal.patch import MAGIC, Patch
from .journal.store import Journal
from .recipe import RunConfig

NOISE_VERSION = 1
OnIteration = Callable[[int, int], None]


def load(path: str | Path) -> Patch:
    """A patch file, a journal, or the folder of a run. Raises JournalError."""
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "journal.jsonl"
    if not file.is_file():
        raise JournalError(f"there is no journal or patch {str(path)!r} (looked from {Path.cwd()}).")
    with file.open("rb") as f:
        if f.read(len(MAGIC)) == MAGIC:
            return Patch.from_bytes(file.read_bytes(), str(file))
    journal, _ = Journal.read(file, mend=False)
    return Patch.of(journal.header, journal.iterations)


def rebuild(
    patches: Sequence[Patch],
    model: str | None = None,
    *,
    until: int | None = None,
    scale: float = 1.0,
    on_iteration: OnIteration = lambda done, count: None,
) -> HFEngine:
    """The engine whose centre is the base model with the patches applied, one after another, each with its updates
    times `scale` and to iteration `until`. `model` names the base; default: as the patch does.

    One patch at scale 1: its digest is checked after every iteration.

    Raises JournalError when the base model, the scope or the noise is not the patch's, or when a digest differs.
    """
    counts = [_count(patch, until) for patch in patches]
    engine: HFEngine | None = None
    done = 0
    for patch, count in zip(patches, counts, strict=True):
        engine = _engine(patch, model, engine, first=patches[0])
        config = patch.header["config"]
        population = Population(config["population_size"], config["antithetic"])
        for t in range(1, count + 1):
            engine.update(population.ask(t), patch.coefficients_T_N[t - 1], float(patch.rates_T[t - 1]) * scale)
            if len(patches) == 1 and scale == 1 and engine.digest() != patch.digest(t):
                raise JournalError(
                    f"after iteration {t} the weights do not have the digest {patch.digest(t)} that was recorded: a "
                    "coefficient was changed, or this machine's arithmetic is not what it should be."
                )
            done += 1
            on_iteration(done, sum(counts))
    assert engine is not None
    return engine


def _count(patch: Patch, until: int | None) -> int:
    if until is not None and not 0 <= until <= len(patch):
        raise ConfigError(f"--until {until}: the run has iterations 1 to {len(patch)}.")
    return len(patch) if until is None else until


def _engine(patch: Patch, model: str | None, before: HFEngine | None, first: Patch) -> HFEngine:
    """An engine as the patch was made with, on the base model, or on the weights of the engine before."""
    base = patch.header["base"]
    if patch.header["noise_version"] != NOISE_VERSION:
        raise JournalError(
            f"this was made with noise version {patch.header['noise_version']}; this version of Seedtune makes "
            f"{NOISE_VERSION}. Install the version that made it ({patch.header.get('software')})."
        )
    args = settings(patch.header["config"])
    if before is None:
        engine = build.engine(model or base["model"], None, args)
        if (found := engine.describe()["digest"]) != base["digest"]:
            raise JournalError(
                f"this was made from {base['model']!r} with digest {base['digest']}; the model given, "
                f"{model or base['model']!r}, has {found}: it is another model, revision or dtype."
            )
    else:
        if base["digest"] != first.header["base"]["digest"]:
            raise JournalError("the patches were made from different base models; only patches of one base compose.")
        engine = build.on_top(before, args)
    if engine.describe()["scope"] != [[n, i, list(s)] for n, i, s in base["scope"]]:
        raise JournalError("the parameters in scope are not those of the run: another version of transformers?")
    return engine


def settings(config: Mapping[str, Any]) -> ESConfig:
    """The settings of a run, on this machine's CPU. Raises JournalError when they cannot be replayed."""
    known = {f.name for f in dataclasses.fields(ESConfig)}
    data = {f.name for f in dataclasses.fields(RunConfig)} | {"data"}
    strange = sorted(set(config) - known - data)
    if strange:
        raise JournalError(f"the run has settings that this version of Seedtune does not know: {', '.join(strange)}.")
    if config.get("restore") == "subtract":
        raise JournalError(
            "the run had restore: subtract, whose rounding depends on every member that was visited; it cannot be "
            "rebuilt from its journal."
        )
    own = {"device": "cpu", "drift_samples": 0}  # and nothing of what a file may not decide: trust_remote_code
    learning = {f.name for f in dataclasses.fields(ESConfig) if f.metadata.get("learning")}
    return ESConfig(**{**{k: v for k, v in config.items() if k in learning}, **own})


def same(a: Patch, b: Patch) -> list[tuple[str, Any, Any]]:
    """What differs before the first iteration: (setting, in a, in b)."""
    pairs = [("base model", a.header["base"]["digest"], b.header["base"]["digest"])]
    defaults = RunConfig.learning_defaults()  # of a setting that is newer than a run
    keys = {**a.header["config"], **b.header["config"]}
    pairs += [(key, *(x.header["config"].get(key, defaults.get(key)) for x in (a, b))) for key in keys]
    return [(key, x, y) for key, x, y in pairs if x != y]


def part(a: Patch, b: Patch) -> int | None:
    """The first iteration after which the weights differ; None: not within what both have."""
    common = min(len(a), len(b))
    differ = np.flatnonzero(a.digests_T[:common] != b.digests_T[:common])
    return int(differ[0]) + 1 if differ.size else None
