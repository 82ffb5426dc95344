"""A process for functions that may not come back."""

from __future__ import annotations

import os
import time

import pytest

from seedtune.utils.limited import LimitedProcess


def deaf(seconds):
    """The alarm does not end it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(end - time.monotonic())
        except BaseException:  # as scorers have it
            continue


def hungry():
    return len(bytearray(1 << 40))


def test_it_calls_and_raises_and_is_the_same_process():
    process = LimitedProcess()
    assert process.call(len, "abc") == 3
    assert process.call(os.getpid) == process.call(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        process.call(int, "x")


def test_an_alarm_ends_a_call_and_the_process_stays():
    process = LimitedProcess(alarm=0.2, limit=30)
    first = process.call(os.getpid)
    assert process.call(time.sleep, 25) is None
    assert process.call(os.getpid) == first


def test_what_the_alarm_does_not_end_is_killed_and_the_next_call_answered():
    process = LimitedProcess(alarm=0.1, limit=0.5)
    first = process.call(os.getpid)
    assert process.call(deaf, 25) is None
    assert process.call(os.getpid) not in (first, None)


def test_a_call_that_ends_its_process_or_fills_the_memory_returns_nothing():
    process = LimitedProcess(limit=30)
    assert process.call(os._exit, 3) is None
    assert process.call(hungry) is None
    assert process.call(len, "ab") == 2
