"""Every error that Seedtune raises on purpose: one tree, so that one `except SeedtuneError` catches all.

A message says what is wrong, why, and what to do. The command line prints it without a traceback and exits
with `exit_code`.
"""

from __future__ import annotations


class SeedtuneError(Exception):
    """The root of the tree."""

    exit_code = 1


class ConfigError(SeedtuneError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""

    exit_code = 2


class ModelError(SeedtuneError):
    """The base model cannot be found, read, or perturbed as asked."""


class NotFiniteError(ModelError):
    """The model computes NaN or infinity: damaged weights, or weights that noise or updates made too large."""


class DataError(SeedtuneError, ValueError):
    """A dataset is missing, empty, or lacks a column; a prompt does not fit the model."""


class RewardError(SeedtuneError):
    """A reward function raised, hung, or returned something that is not a list of rewards."""


class SandboxError(SeedtuneError):
    """Generated code cannot be run safely here: bubblewrap is missing, or namespaces are not allowed."""


class RunFolderError(SeedtuneError):
    """The output folder holds another run, or nothing to resume."""


class JournalError(SeedtuneError):
    """The journal is damaged, or does not belong to this run."""


class FleetError(SeedtuneError):
    """Replicas cannot be started, differ from one another, or are gone."""


class HubError(SeedtuneError):
    """The Hub cannot be reached, or refuses what a run pushes; what is on disk is untouched."""


class SaveError(SeedtuneError, OSError):
    """Writing to disk failed; what was there before is untouched."""
