"""Standard output and error that end nothing: a run is worth more than its log."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console

from .stdio import open_closed

#: What is written in the place of signs that a stream cannot encode; of others, a question mark.
_PLAIN = dict(zip("±–—…·×≤≥≈→↑↓▁▂▃▄▅▆▇█σαθ", ["+/-", "-", "-", "...", "|", "x", "<=", ">=", "~", "->", "^", "v",
                                             *"_.:-=+*#", "sigma", "alpha", "theta"], strict=True))  # fmt: skip


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error("seedtune.plain", _plain)


class Tolerant:
    """A text stream: signs that it cannot encode are replaced, and what cannot be written, because its reader has gone,
    it was closed, or the disk is full, is dropped. Everything else is the stream's own. None: standard output (or
    error), whatever that is when something is written.
    """

    def __init__(self, stream: IO[str] | None = None, *, stderr: bool = False) -> None:
        self._given, self._stderr = stream, stderr

    @property
    def _stream(self) -> Any:
        stream = self._given or (sys.stderr if self._stderr else sys.stdout)
        return getattr(stream, "rich_proxied_file", stream)  # rich puts a proxy there while it draws

    def write(self, text: str) -> int:
        stream = self._stream
        if stream is not None:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                self.write(text.encode(encoding, "seedtune.plain").decode(encoding))
            except (OSError, ValueError) as e:
                self._lost(e)
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError) as e:
            self._lost(e)

    def _lost(self, error: Exception) -> None:
        """Who reads a pipe has gone for good: what is still buffered would be tried again when Python exits."""
        if isinstance(error, BrokenPipeError):
            with suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def isatty(self) -> bool:
        with suppress(ValueError):  # it was closed
            return self._stream is not None and bool(self._stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerant(console: Console) -> Console:
    """The same console, on a tolerant stream."""
    if not isinstance(console.file, Tolerant):
        given = console._file
        console.file = cast(IO[str], Tolerant(given, stderr=console.stderr))
    return console


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Standard output and error are tolerant meanwhile, for whoever writes there: for the command line."""
    open_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(Any, Tolerant(s)) for s in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Tolerant):
                stream.flush()
        sys.stdout, sys.stderr = before
