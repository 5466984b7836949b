# SPDX-License-Identifier: GPL-2.0-only
"""Another process's socket: who has which, and a descriptor of one, by pidfd_getfd(2).

The kernel writes the net_cls and net_prio classes (cgroup v1) of whoever receives a
socket to it, __receive_sock() in net/core/scm.c: a socket that is taken has ours.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from glob import iglob
from socket import SOL_SOCKET, socket
from sys import byteorder
from typing import TYPE_CHECKING

from zfw_py.errors import KernelError, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Set

# asm-generic/unistd.h; the same on every architecture.
_PIDFD_GETFD = 438
_SO_COOKIE = 57  # asm-generic/socket.h

_libc = ctypes.CDLL(None, use_errno=True)


def holders(inodes: Iterable[int]) -> dict[int, list[int]]:
    """By inode the processes that have a socket open, of all that can be seen; in no order.

    Looks at every descriptor of every process that the caller may look at.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, list[int]] = {inode: [] for inode in wanted.values()}
    if not wanted:
        return found
    for directory in iglob("/proc/[0-9]*/fd"):
        pid = int(directory.split("/")[2])
        with suppress(PermissionDenied):
            # A process that ends meanwhile holds nothing.
            for target, _ in _sockets_of(pid):
                if target in wanted and pid not in found[wanted[target]]:
                    found[wanted[target]].append(pid)
    return found


def inodes_of(pid: int) -> set[int]:
    """The inodes of a process's sockets of any kind; none if there is no such process."""
    return {_inode_of(each) for each in _sockets_of(pid)}


def _sockets_of(pid: int) -> Iterator[tuple[str, int]]:
    directory = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(directory)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise PermissionDenied(f"see the sockets of process {pid}: needs root") from None
        return
    for number in numbers:
        try:
            target = os.readlink(f"{directory}/{number}")
        except OSError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            yield target, int(number)


def take(
    pid: int, cookie: int, inode: int | None = None, kinds: Set[str] = frozenset()
) -> socket | None:
    """The socket of this cookie, that a process has open; the caller closes it.

    Without its ``inode`` all of the process's sockets are tried whose protocol the kernel
    calls by one of ``kinds``, as /proc/net/protocols has them, the latest first. None if
    the process has it no longer. Raises PermissionDenied, KernelError.
    """
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return None
        raise _failed(pid, error.errno or 0) from error
    try:
        held = sorted(_sockets_of(pid), key=_inode_of, reverse=True)
        for target, number in held:
            if inode is None:
                if _kind(pid, number) not in kinds:
                    continue
            elif target != f"socket:[{inode}]":
                continue
            taken = _take(process, number, pid)
            if taken is None:
                continue
            # The number may be another file's by now.
            if cookie_of(taken) == cookie:
                return taken
            taken.close()
    finally:
        os.close(process)
    return None


def take_all(pid: int, kinds: Set[str]) -> Iterator[socket]:
    """Descriptors of all sockets of a process whose protocol is one of ``kinds``, as in ``take``.

    The caller closes them. Raises PermissionDenied, KernelError.
    """
    process = os.pidfd_open(pid)
    try:
        for _, number in _sockets_of(pid):
            if _kind(pid, number) in kinds:
                taken = _take(process, number, pid)
                if taken is not None:
                    yield taken
    finally:
        os.close(process)


def take_descriptor(pid: int, number: int) -> int:
    """A duplicate of a process's descriptor of any kind. Raises PermissionDenied, KernelError."""
    process = os.pidfd_open(pid)
    try:
        fd = _getfd(process, number)
        if fd < 0:
            raise _failed(pid, ctypes.get_errno())
        return fd
    finally:
        os.close(process)


def _inode_of(held: tuple[str, int]) -> int:
    return int(held[0][len("socket:[") : -1])


def _kind(pid: int, number: int) -> str:
    try:
        name = os.getxattr(f"/proc/{pid}/fd/{number}", "system.sockprotoname")
    except OSError:
        return ""  # closed meanwhile
    return name.rstrip(b"\0").decode("ascii", "replace")


def _take(process: int, number: int, pid: int) -> socket | None:
    fd = _getfd(process, number)
    if fd < 0:
        number = ctypes.get_errno()
        if number in (errno.EBADF, errno.ESRCH):
            return None
        raise _failed(pid, number)
    try:
        return socket(fileno=fd)
    except OSError:
        os.close(fd)  # no socket any more
        return None


def _getfd(process: int, number: int) -> int:
    fd: int = _libc.syscall(
        ctypes.c_long(_PIDFD_GETFD), ctypes.c_int(process), ctypes.c_int(number), ctypes.c_uint(0)
    )
    return fd


def cookie_of(held: socket) -> int | None:
    """SO_COOKIE: a number that no other socket has while the kernel runs. None: no such option."""
    try:
        return int.from_bytes(held.getsockopt(SOL_SOCKET, _SO_COOKIE, 8), byteorder)
    except OSError:
        return None


def _failed(pid: int, number: int) -> PermissionDenied | KernelError:
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDenied(f"take a socket of process {pid}: not permitted: needs root")
    return KernelError(f"take a socket of process {pid}", number)
