"""Shows messages of the logger `seedtune` on the terminal: for the command line. Library users configure logging."""

from __future__ import annotations

import logging

import rich
from rich.text import Text


class ConsoleHandler(logging.Handler):
    """Prints records through rich's global console, so that they appear above a live panel: warnings in yellow on a
    terminal, where lines are broken between words; plain text and whole lines elsewhere. No markup.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            warns = record.levelno >= logging.WARNING
            text = f"Warning: {self.format(record)}" if warns else self.format(record)
            console = rich.get_console()
            console.print(Text(text, style="yellow" if warns else ""), soft_wrap=not console.is_terminal)
        except Exception:
            self.handleError(record)


def install(stderr: bool = False) -> None:
    """Show messages of Seedtune, INFO and above, on standard output (or `stderr`). Calling it again adds no second
    handler.
    """
    rich.reconfigure(stderr=stderr, highlight=False)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, to hear which kernels it lacks
    logger = logging.getLogger("seedtune")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
