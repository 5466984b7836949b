# SPDX-License-Identifier: GPL-2.0-only
"""The seccomp filter of each machine, by a model of the kernel's interpreter."""

from __future__ import annotations

import errno
import struct

import pytest

from zfw_py.kernel import seccomp

ALLOW = 0
X86_64, I386, ARM64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
INET, VSOCK = 2, 40


def result_of(machine: str, architecture: int, number: int, *arguments: int) -> int:
    """The error that a call returns, 0 if it is made."""
    given = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, architecture, 0, *given)
    program = list(struct.iter_unpack("=HBBI", seccomp._filter(seccomp._MACHINES[machine])))
    place = loaded = 0
    while True:
        code, when, when_not, value = program[place]
        place += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, value)
        elif code in (0x15, 0x35):
            is_so = loaded == value if code == 0x15 else loaded >= value
            place += when if is_so else when_not
        else:
            assert code == 0x06
            return ALLOW if value == 0x7FFF0000 else value & 0xFFFF


@pytest.mark.parametrize(
    ("machine", "architecture", "call", "expected"),
    [
        ("x86_64", X86_64, (0,), ALLOW),
        ("x86_64", X86_64, (41, INET), ALLOW),
        ("x86_64", X86_64, (41, VSOCK), errno.EAFNOSUPPORT),
        ("x86_64", X86_64, (41, 0xFFFFFFFF_00000000 + VSOCK), errno.EAFNOSUPPORT),
        ("x86_64", X86_64, (53, VSOCK), errno.EAFNOSUPPORT),
        ("x86_64", X86_64, (249, 1, 1, 0), ALLOW),
        ("x86_64", X86_64, (249, 1, 1, 1), errno.EPERM),
        ("x86_64", X86_64, (249, 1, 1, 1 << 32), errno.EPERM),
        ("x86_64", X86_64, (425,), errno.EPERM),
        ("x86_64", X86_64, (0x40000000 + 41, INET), errno.ENOSYS),
        ("x86_64", X86_64, (0xFFFFFFFF,), errno.ENOSYS),
        ("x86_64", I386, (359, INET), ALLOW),
        ("x86_64", I386, (359, VSOCK), errno.EAFNOSUPPORT),
        ("x86_64", I386, (102, 1), errno.ENOSYS),
        ("x86_64", I386, (102, 3), ALLOW),
        ("x86_64", I386, (287, 1, 1, 1), errno.EPERM),
        ("x86_64", I386, (41, VSOCK), ALLOW),  # dup(2)
        ("x86_64", ARM64, (0,), errno.ENOSYS),
        ("aarch64", ARM64, (198, VSOCK), errno.EAFNOSUPPORT),
        ("aarch64", ARM64, (218, 1, 1, 1), errno.EPERM),
        ("aarch64", ARM, (281, VSOCK), errno.EAFNOSUPPORT),
        ("aarch64", ARM, (281, INET), ALLOW),
        ("armv7l", ARM, (425,), errno.EPERM),
    ],
)
def test_a_call(machine: str, architecture: int, call: tuple[int, ...], expected: int) -> None:
    assert result_of(machine, architecture, *call) == expected


@pytest.mark.parametrize("machine", [*seccomp._MACHINES])
def test_each_machine_refuses_the_same(machine: str) -> None:
    for calls in seccomp._MACHINES[machine]:
        architecture = calls.architecture
        assert result_of(machine, architecture, calls.socket, INET) == ALLOW
        assert result_of(machine, architecture, calls.socket, VSOCK) == errno.EAFNOSUPPORT
        assert result_of(machine, architecture, calls.request_key, 1, 1, 1) == errno.EPERM
        assert result_of(machine, architecture, calls.io_uring_setup) == errno.EPERM
