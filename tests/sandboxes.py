"""What tests of the sandbox share."""

from __future__ import annotations

import shutil
import textwrap

import pytest

from seedtune import sandbox

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def run(code, stdin="", **limits):
    """What comes of a program, here in fewer seconds than usual."""
    return sandbox.run(textwrap.dedent(code), stdin, sandbox.Limits(**{"seconds": 20, **limits}))
