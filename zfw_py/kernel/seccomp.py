# SPDX-License-Identifier: GPL-2.0-only
"""A seccomp filter that lets a process send by sockets of IP alone.

Programs on a cgroup meet no other sockets, and nothing that another process sends on request.
See Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import NamedTuple

from zfw_py.kernel.libc import last_error, libc

# include/uapi/linux/prctl.h, seccomp.h, filter.h
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _IS, _IS_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
# struct seccomp_data: the number of the call, its architecture, and six arguments.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET (it needs CAP_NET_RAW), AF_ALG.
_FAMILIES = (1, 2, 10, 16, 17, 38)
# Calls of x32, which share the architecture's number.
_X32 = 0x40000000
# SYS_SOCKET and SYS_SOCKETPAIR of socketcall(2), whose arguments a filter cannot see.
_SOCKETCALLS = (1, 8)


class _Calls(NamedTuple):
    """Numbers of system calls on an architecture (AUDIT_ARCH_* of include/uapi/linux/audit.h)."""

    architecture: int
    socket: int
    socketpair: int
    request_key: int
    socketcall: int = -1
    io_uring_setup: int = 425


_GENERIC = (198, 199, 218)
_ARM = _Calls(0x40000028, 281, 288, 310)
# By machine, as uname(2) names it: the native architecture, and what it runs beside.
_MACHINES = {
    "x86_64": (_Calls(0xC000003E, 41, 53, 249), _Calls(0x40000003, 359, 360, 287, 102)),
    "aarch64": (_Calls(0xC00000B7, *_GENERIC), _ARM),
    "armv7l": (_ARM,),
    "riscv64": (_Calls(0xC00000F3, *_GENERIC),),
    "loongarch64": (_Calls(0xC0000102, *_GENERIC),),
    "ppc64le": (_Calls(0xC0000015, 326, 333, 270, 102),),
    "ppc64": (_Calls(0x80000015, 326, 333, 270, 102),),
    "s390x": (_Calls(0x80000016, 359, 360, 279, 102),),
}


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def keep_to_ip() -> None:
    """Refuse the caller and its descendants what sends past IP, for good.

    Refused are sockets of other families than Unix, IP, netlink and AF_ALG (EAFNOSUPPORT);
    request_key(2) with a text for a program of root's that makes the key; io_uring, which creates
    sockets past this filter (EPERM, as kernel.io_uring_disabled does); and system calls of other
    architectures (ENOSYS). The caller gains no new privileges, or has CAP_SYS_ADMIN. Raises
    OSError, also on a machine whose numbers of system calls are not known.
    """
    calls = _MACHINES.get(os.uname().machine)
    if calls is None:
        raise OSError(errno.EOPNOTSUPP, "PR_SET_SECCOMP")
    instructions = _filter(calls)
    program = _Program(len(instructions) // 8, instructions)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(last_error(), "PR_SET_SECCOMP")


def _filter(architectures: tuple[_Calls, ...]) -> bytes:
    """The filter's instructions, struct sock_filter each."""
    found = _load(_ARCHITECTURE)
    for calls in architectures:
        found += _where(calls.architecture, _of_architecture(calls))
    return found + _error(errno.ENOSYS)


def _of_architecture(calls: _Calls) -> bytes:
    family = b"".join(_where(each, _allow()) for each in _FAMILIES)
    one_of_families = _load(_argument(0)) + family + _error(errno.EAFNOSUPPORT)
    # Without a text the kernel calls no program.
    without_text = _load(_argument(2)) + _where(
        0, _load(_argument(2, is_low=False)) + _where(0, _allow())
    )
    found = _load(_NUMBER) + _where(_X32, _error(errno.ENOSYS), test=_IS_AT_LEAST)
    for number in (calls.socket, calls.socketpair):
        found += _where(number, one_of_families)
    found += _where(calls.request_key, without_text + _error(errno.EPERM))
    found += _where(calls.io_uring_setup, _error(errno.EPERM))
    if calls.socketcall >= 0:
        made = b"".join(_where(each, _error(errno.ENOSYS)) for each in _SOCKETCALLS)
        found += _where(calls.socketcall, _load(_argument(0)) + made + _allow())
    return found + _allow()


def _argument(number: int, *, is_low: bool = True) -> int:
    """The offset of one half of an argument."""
    return _ARGUMENTS + 8 * number + (0 if is_low == (sys.byteorder == "little") else 4)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _where(value: int, then: bytes, *, test: int = _IS) -> bytes:
    """Instructions that are done where the loaded word is ``value``; they end the program."""
    return _instruction(test, value, when_not=len(then) // 8) + then


def _allow() -> bytes:
    return _instruction(_RETURN, _RET_ALLOW)


def _error(number: int) -> bytes:
    return _instruction(_RETURN, _RET_ERRNO | number)


def _instruction(code: int, value: int, when_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, 0, when_not, value)
