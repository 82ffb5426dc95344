"""Standard input, output and error of this process."""

from __future__ import annotations

import os
import sys


def open_closed() -> None:
    """Those that are closed (`>&-`, a service, pythonw) lead nowhere from now on, here and in processes that start:
    libraries take for granted that they are there, and a file that is opened next would get their number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, mode)  # noqa: SIM115
            os.set_inheritable(nowhere.fileno(), nowhere.fileno() < 3)
            setattr(sys, name, nowhere)
