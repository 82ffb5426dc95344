"""The journal of a run, from which its weights can be rebuilt; the rest of its folder; and patches."""

from .folder import RunFolder
from .patch import Patch
from .record import Iteration, Return
from .store import Journal

__all__ = ["Iteration", "Journal", "Patch", "Return", "RunFolder"]
