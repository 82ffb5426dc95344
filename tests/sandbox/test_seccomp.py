"""The filter of system calls, run here by a small machine for BPF."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from seedtune.sandbox import seccomp

ALLOW, KILL, DENY, MISSING = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
HEADERS = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))


def verdict(machine, number, *arguments, architecture=None):
    """What the filter says of a call."""
    program = list(struct.iter_unpack("<HBBI", seccomp.assemble(machine)))
    architecture = seccomp.MACHINES[machine][1] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, architecture, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    position = accumulator = 0
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x54:
            accumulator &= operand
        elif code in (0x15, 0x25):
            position += if_true if (accumulator == operand if code == 0x15 else accumulator > operand) else if_false
        else:
            assert code == 0x06
            return operand


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_what_is_denied(machine):
    column, _ = seccomp.MACHINES[machine]
    for name, numbers in seccomp.DENIED.items():
        if numbers[column] is not None:
            assert verdict(machine, numbers[column]) == DENY, name
    assert verdict(machine, 435) == MISSING
    assert verdict(machine, seccomp.LAST_KNOWN + 1) == MISSING
    assert verdict(machine, 2**30) == MISSING
    assert verdict(machine, 0 if column == 0 else 63) == ALLOW  # read
    assert verdict(machine, 0, architecture=0x40000003) == KILL  # i386


@pytest.mark.parametrize(("machine", "clone", "socket", "ioctl"), [("x86_64", 56, 41, 16), ("aarch64", 220, 198, 29)])
def test_what_depends_on_an_argument(machine, clone, socket, ioctl):
    assert verdict(machine, clone, 0x3D0F00) == ALLOW  # a thread of glibc
    assert verdict(machine, clone, 17) == DENY  # fork
    assert verdict(machine, clone, 0x10000000) == DENY  # a user namespace
    assert verdict(machine, socket, 1) == ALLOW
    assert verdict(machine, socket, 2) == DENY
    assert verdict(machine, socket, 2**32 + 2) == DENY
    assert verdict(machine, ioctl, 0, 0x5412) == DENY
    assert verdict(machine, ioctl, 0, 0x5401) == ALLOW


@pytest.mark.skipif(not all(h.exists() for h in HEADERS), reason="the kernel's headers are not installed")
def test_numbers_are_those_of_the_kernels_headers():
    by_column = [dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", h.read_text())) for h in HEADERS]
    calls = {**seccomp.DENIED, **{name: rule[0] for name, rule in seccomp._BY_ARGUMENT.items()}}
    for name, numbers in calls.items():
        for number, known in zip(numbers, by_column, strict=True):
            if number is not None and name in known:
                assert number == int(known[name]), name
        assert numbers[0] is None or name in by_column[0], name
