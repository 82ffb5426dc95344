"""A Hub that cannot be reached: known after one attempt, so that nobody waits for retries of every file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from huggingface_hub import constants, get_session

log = logging.getLogger(__name__)

#: Seconds to wait for a connection.
_PATIENCE = 10.0
#: What errors of the HTTP library are called when there is no connection; its name changed between versions.
_NO_CONNECTION = {"ConnectError", "ConnectTimeout"}


@contextmanager
def cache_where_unreachable(is_hub_id: bool) -> Iterator[None]:
    """Within it, models of the Hub are looked for in the local cache alone, if the Hub cannot be reached. Where the
    model's name `is_hub_id` not, nothing is asked.
    """
    if not is_hub_id or constants.HF_HUB_OFFLINE or _is_reachable():
        yield
        return
    _warn(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


@lru_cache
def _warn(address: str) -> None:
    """Once, however often a model is looked for."""
    log.warning("%s cannot be reached, so only models in the local cache are found.", address)


def _is_reachable() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as e:
        return type(e).__name__ not in _NO_CONNECTION  # others are explained where the model is loaded
    return True
