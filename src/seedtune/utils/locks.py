"""Locks on files, where there are any."""

from __future__ import annotations

import errno
from typing import IO, Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)


def lock(file: IO[str], *, shared: bool = False) -> bool:
    """Lock an open file until it is closed, alone or `shared` with other readers. Returns whether there are locks: some
    file systems, and Windows, have none. Raises BlockingIOError when another process holds it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in _HELD:
            raise BlockingIOError(e.errno, e.strerror) from None
        return False
    return True
