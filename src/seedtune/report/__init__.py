"""What a user sees of a run: the display while it trains, tables, model cards, and pages with figures."""

from .progress import Lines, Panel, Progress, display
from .summary import Summary

__all__ = ["Lines", "Panel", "Progress", "Summary", "display"]
