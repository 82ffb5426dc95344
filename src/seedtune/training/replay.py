"""From a base model and a journal (or a patch) to the fine-tuned weights, without a single generation."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config.es_config import KEEPS_NO_BASE, ESConfig
from ..config.run_config import RunConfig
from ..engines.hf.engine import HFEngine
from ..errors import ConfigError, JournalError
from ..es.population import Population
from ..journal.folder import RunFolder
from ..journal.patch import MAGIC, Patch
from ..journal.store import Journal
from ..noise import spec
from ..perturb.checks import FROZEN
from ..utils.paths import AnyPath, local_path
from . import factory

log = logging.getLogger(__name__)

OnIteration = Callable[[int, int], None]


def load(path: AnyPath, until: str | int | None = None) -> Patch:
    """A patch file, a journal, or the folder of a run, with the updates that make the center after iteration `until`
    (0: none of them; `last`; `best`, of a journal). Default: what the run hands back, which is its best center where it
    kept track of that, else its last; of a patch all. Raises JournalError, and ConfigError for an `until` that it does
    not have.
    """
    file = local_path(path)
    if file.is_dir():
        file = file / "journal.jsonl"
    if not file.is_file():
        raise JournalError(f"there is no journal or patch {os.fspath(path)!r} (looked from {Path.cwd()}).")
    with file.open("rb") as f:
        if f.read(len(MAGIC)) == MAGIC:
            return _until(Patch.from_bytes(file.read_bytes(), str(file)), until)
    journal, _ = Journal.read(file, repair=False)
    folder = RunFolder(file.parent)
    best, header = folder.best(), journal.header
    if folder.base.is_dir():
        header = {**header, "base": {**header["base"], "model": str(folder.base)}}
    if until == "best" and best is None:
        raise JournalError(
            f"{file} does not say which center was best: nothing was evaluated, load_best_model_at_end was off, or "
            "metrics.jsonl is missing."
        )
    if until is None or until == "best":
        until = journal.center if best is None else best
    last = journal.center if until == "last" else int(until)
    if not 0 <= last <= len(journal.iterations):
        raise ConfigError(f"--until {until}: the run has iterations 1 to {len(journal.iterations)}.")
    if last == 0:
        return Patch.of(header, journal.iterations[:1]).first(0)
    return Patch.of(header, journal.trajectory(last))


def _until(patch: Patch, until: str | int | None) -> Patch:
    if until in (None, "last"):
        return patch
    if until == "best":
        raise ConfigError("--until best is for runs; a patch already ends where its run was best.")
    if int(str(until)) not in (0, *patch.steps):
        raise ConfigError(f"--until {until}: the patch has iterations {', '.join(map(str, patch.steps))}.")
    return patch.first(sum(t <= int(str(until)) for t in patch.steps))


def rebuild(
    patches: Sequence[Patch],
    model: AnyPath | None = None,
    *,
    scale: float = 1.0,
    on_iteration: OnIteration = lambda done, count: None,
) -> HFEngine:
    """The engine whose center is the base model with the patches applied, one after another, each with its updates
    times `scale`. `model` names the base; default: as the patch does.

    One patch at scale 1: its digest is checked after every iteration.

    Raises JournalError when the base model, the scope or the noise is not the patch's, or when a digest differs.
    """
    engine: HFEngine | None = None
    base = None if model is None else os.fspath(model)
    done, total = 0, sum(map(len, patches))
    for patch in patches:
        engine = _engine(patch, base, engine, first=patches[0])
        config = patch.header["config"]
        population = Population(config["population_size"], config["antithetic"])
        for n, t in enumerate(patch.steps):
            engine.update(population.ask(t), patch.coefficients_T_N[n], float(patch.rates_T[n]) * scale)
            if len(patches) == 1 and scale == 1 and engine.digest() != patch.digest(n + 1):
                raise JournalError(
                    f"after iteration {t} the weights do not have the digest {patch.digest(n + 1)} that was recorded: "
                    "a coefficient was changed, or this machine's arithmetic is not what it should be."
                )
            done += 1
            on_iteration(done, total)
    assert engine is not None
    return engine


def _engine(patch: Patch, model: str | None, before: HFEngine | None, first: Patch) -> HFEngine:
    """An engine as the patch was made with, on the base model, or on the weights of the engine before."""
    base = patch.header["base"]
    if patch.header["noise_version"] != spec.VERSION:
        raise JournalError(
            f"this was made with noise version {patch.header['noise_version']}; this version of Seedtune makes "
            f"{spec.VERSION}. Install the version that made it ({patch.header.get('software')})."
        )
    args = replay_settings(patch.header["config"])
    if before is None:
        log.info("Loading %s.", model or base["model"])
        frozen = [name for name, why in base.get("left_out", {}).items() if why == FROZEN]
        engine = factory.hf_engine(model or base["model"], None, args, frozen=frozen, decodes=False)
        if (found := engine.describe()["digest"]) != base["digest"]:
            raise JournalError(
                f"this was made from {base['model']!r} with digest {base['digest']}; the model given, "
                f"{model or base['model']!r}, has {found}: it is another model, revision or dtype."
            )
    else:
        if base["digest"] != first.header["base"]["digest"]:
            raise JournalError("the patches were made from different base models; only patches of one base compose.")
        engine = factory.stack(before, args)
    if engine.describe()["scope"] != [[n, i, list(s)] for n, i, s in base["scope"]]:
        raise JournalError("the parameters in scope are not those of the run: another version of transformers?")
    return engine


def replay_settings(config: Mapping[str, Any]) -> ESConfig:
    """The settings of a run, on this machine's CPU. Raises JournalError when they cannot be replayed."""
    known = {f.name for f in dataclasses.fields(RunConfig)} | {"data"}
    if strange := sorted(set(config) - known):
        raise JournalError(f"the run has settings that this version of Seedtune does not know: {', '.join(strange)}.")
    if config.get("restore") == "subtract":
        raise JournalError(
            "the run had restore: subtract, whose rounding depends on every member that was visited; it cannot be "
            "rebuilt from its journal."
        )
    own = {"device": "cpu", **KEEPS_NO_BASE}  # and nothing of what a file may not decide: trust_remote_code
    trajectory = {f.name for f in dataclasses.fields(ESConfig) if f.metadata["affects_weights"]}
    return ESConfig(**{**{k: v for k, v in config.items() if k in trajectory}, **own})


def config_diff(a: Patch, b: Patch) -> list[tuple[str, Any, Any]]:
    """What differs before the first iteration: (setting, in a, in b)."""
    pairs = [("base model", a.header["base"]["digest"], b.header["base"]["digest"])]
    defaults = RunConfig.trajectory_defaults()  # of a setting that is newer than a run
    keys = {**a.header["config"], **b.header["config"]}
    pairs += [(key, *(x.header["config"].get(key, defaults.get(key)) for x in (a, b))) for key in keys]
    return [(key, x, y) for key, x, y in pairs if x != y]


def first_divergence(a: Patch, b: Patch) -> int | None:
    """The number of updates after which the weights first differ; None: not within what both have."""
    common = min(len(a), len(b))
    differ = np.flatnonzero(a.digests_T[:common] != b.digests_T[:common])
    return int(differ[0]) + 1 if differ.size else None
