"""torch's settings of this process, which decide how sums are rounded: what users' functions change is set back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def settings_kept() -> Iterator[None]:
    """Threads, default dtype and device, precision of float32 products and determinism are behind it as before it.

    Where torch is not loaded, nothing that rounds is run.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    kept = [(get, put, _value(get)) for get, put in _settings(torch)]
    try:
        yield
    finally:
        torch.set_num_threads(threads)  # always: MKL's, which another thread may have set, cannot be asked
        for get, put, before in kept:
            if before is not None and _value(get) != before:
                put(before)


def _settings(torch: Any) -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
    def set_device(device: Any) -> None:
        torch.set_default_device(None if device.type == "cpu" else device)  # None: as if it was never set

    return [
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, set_device),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    ]


def _value(get: Callable[[], Any]) -> Any:
    """None: it has no single value, as precision that was set per backend."""
    with suppress(RuntimeError):
        return get()
    return None
