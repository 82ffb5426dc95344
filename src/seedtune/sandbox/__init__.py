"""A sandbox for code that a model wrote: `run(code, stdin="", limits=Limits(...)) -> Result`. docs/guides/sandbox.md
says what is promised and what is not.
"""

from .limits import Limits, Result
from .program import check, converse, run

__all__ = ["Limits", "Result", "check", "converse", "run"]
