"""Training the same model on the same task by several methods, with equally many completions each."""

from .context import MethodContext

__all__ = ["MethodContext"]
