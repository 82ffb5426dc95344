"""Tools and environments that a model calls between its turns, in processes beside the one that decodes. The signatures
are TRL's.
"""

from .pool import ToolPool
from .toolset import ToolSet

__all__ = ["ToolPool", "ToolSet"]
