"""What a program may use, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from ..errors import ConfigError

MIB = 2**20

#: Why a program ended: of itself, with exit code 0 or another; or because it used up what it had of something.
Ended = Literal["ok", "error", "time", "memory", "output"]


@dataclass(frozen=True)
class Limits:
    """What one program may use. Raises ConfigError for what is no positive number."""

    #: Wall-clock seconds, the sandbox's own start (some hundredths of a second) included.
    seconds: float = 5.0
    #: Bytes of address space, the interpreter's own included (some 20 MiB).
    memory: int = 512 * MIB
    #: Bytes that it may write to stdout, and as many to stderr.
    output: int = MIB
    #: Bytes of files in its working folder, all together.
    disk: int = 16 * MIB
    #: How many files and folders it may make there.
    files: int = 256
    #: Threads; a program is one process, and cannot start another.
    threads: int = 32
    #: Files, pipes and sockets that are open at once.
    open_files: int = 64

    #: Below these, Python itself does not start.
    _LEAST = {"memory": 64 * MIB, "open_files": 16}  # noqa: RUF012 (no field: it has no annotation)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = (int, float) if field.name == "seconds" else (int,)
            least = self._LEAST.get(field.name, 0)
            if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or value <= 0:
                kind = "number" if field.name == "seconds" else "whole number"
                raise ConfigError(f"limits of the sandbox: {field.name} is a {kind} above 0; got {value!r}.")
            if value < least:
                raise ConfigError(
                    f"limits of the sandbox: {field.name} is at least {least:,}, or Python does not start; got {value}."
                )


@dataclass(frozen=True)
class Result:
    """What came of a program. `stdout` and `stderr`: at most `Limits.output` bytes of each, decoded from UTF-8, with a
    replacement character for what is none. `exit_code`: as in a shell, 128 + n for a program that signal n ended; None
    for one that was killed for `time` or `output`. `seconds`: from start to end, the sandbox's included.

    `ended` is "memory" where Python's last words are a MemoryError. All of it is what the program says of itself: a
    program may print, and exit with, whatever it likes.
    """

    stdout: str
    stderr: str
    exit_code: int | None
    ended: Ended
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ended of itself, with exit code 0."""
        return self.ended == "ok"
