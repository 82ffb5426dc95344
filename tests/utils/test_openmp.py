"""Idle threads sleep soon, so that two runs on one machine do not take the cores from each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

OURS = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}


def run(code, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "KMP_", "OMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("package", ["seedtune", "seedtune.cli.main", "seedtune.rewards.scorer"])
@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, OURS),
        ({"GOMP_SPINCOUNT": "7"}, {**OURS, "GOMP_SPINCOUNT": "7"}),
        ({"KMP_BLOCKTIME": "200"}, {**OURS, "KMP_BLOCKTIME": "200"}),
        ({"OMP_WAIT_POLICY": "active"}, {}),
    ],
)
def test_it_is_set_before_torch_is_loaded_unless_the_user_did(package, given, found):
    code = (
        f"import {package}, os, sys; assert 'torch' not in sys.modules\n"
        f"print({{k: os.environ[k] for k in {list(OURS)} if k in os.environ}})"
    )
    assert run(code, **given).stdout.strip() == str(found)


def test_the_library_that_torch_brings_reads_it():
    said = run("import seedtune.training.trainer", OMP_DISPLAY_ENV="verbose").stderr
    if "GOMP_" not in said:
        pytest.skip("torch is not built with libgomp here")
    assert "GOMP_SPINCOUNT = '2000'" in said
