# SPDX-License-Identifier: GPL-2.0-only
"""Sockets of other processes, by /proc/PID/fd and pidfd_getfd(2).

pidfd_getfd(2) has a side effect: the kernel writes the net_cls and net_prio classes
(cgroup v1) of the process that receives a socket to that socket, __receive_sock() in
net/core/scm.c. So a socket that is taken gets the caller's classes.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager, suppress
from glob import iglob
from socket import SOL_SOCKET, socket
from sys import byteorder
from typing import TYPE_CHECKING

from zfw_py.errors import KernelError, NotFound, PermissionDenied
from zfw_py.kernel.libc import last_error, libc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Set

# asm-generic/unistd.h; the same on every architecture.
_PIDFD_GETFD = 438
_SO_COOKIE = 57  # asm-generic/socket.h
_SOCKET = "socket:["


def holders(inodes: Iterable[int]) -> dict[int, list[int]]:
    """The ids of the processes that have each of these sockets open, by inode, in no order.

    This reads every descriptor of every process that the caller may look at.
    """
    found: dict[int, list[int]] = {inode: [] for inode in inodes}
    if not found:
        return found
    for directory in iglob("/proc/[0-9]*/fd"):
        pid = int(directory.split("/")[2])
        with suppress(PermissionDenied):
            for inode in found.keys() & inodes_of(pid):
                found[inode].append(pid)
    return found


def inodes_of(pid: int) -> set[int]:
    """The inodes of a process's sockets of any kind; none if there is no such process.

    Raises PermissionDenied, KernelError.
    """
    try:
        return {inode for inode, _ in descriptors_of(pid)}
    except NotFound:
        return set()


def descriptors_of(pid: int) -> list[tuple[int, int]]:
    """Inode and descriptor of each socket that a process has open.

    Raises NotFound if there is no such process, PermissionDenied, KernelError.
    """
    directory = f"/proc/{pid}/fd"
    found = []
    with _reading(pid):
        for number in os.listdir(directory):
            with suppress(FileNotFoundError):  # closed since
                target = os.readlink(f"{directory}/{number}")
                if target.startswith(_SOCKET):
                    found.append((int(target[len(_SOCKET) : -1]), int(number)))
    return found


def protocol_name(pid: int, number: int) -> str:
    """The kernel's name for the protocol of a process's socket, by its descriptor.

    As /proc/net/protocols has them: TCPv6, UDP, ... It is the protocol that the socket
    was made with, an extended attribute of sockfs (net/socket.c). Empty if it is closed.
    Raises as ``descriptors_of``.
    """
    name = b""
    with _reading(pid), suppress(FileNotFoundError):
        name = os.getxattr(f"/proc/{pid}/fd/{number}", "system.sockprotoname")
    return name.rstrip(b"\0").decode("ascii", "replace")


@contextmanager
def _reading(pid: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise NotFound(f"no such process: {pid}") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionDenied(f"see the sockets of process {pid}: needs root") from error
        raise KernelError(f"see the sockets of process {pid}", error.errno or 0) from error


def take(
    pid: int, cookie: int, inode: int | None = None, kinds: Set[str] = frozenset()
) -> socket | None:
    """The socket of this cookie that a process has open; the caller closes it.

    Without ``inode`` this tries each of the process's sockets whose ``protocol_name`` is
    one of ``kinds``, the one made last first. None if the process does not have the socket
    any more. Raises PermissionDenied, KernelError.
    """
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return None
        raise _failed(pid, error.errno or 0) from error
    try:
        for its_inode, number in sorted(descriptors_of(pid), reverse=True):
            if inode is None:
                if protocol_name(pid, number) not in kinds:
                    continue
            elif its_inode != inode:
                continue
            taken = _take(process, number, pid)
            if taken is None:
                continue
            # The process may have closed that descriptor and opened another file.
            if cookie_of(taken) == cookie:
                return taken
            taken.close()
    except NotFound:
        return None
    finally:
        os.close(process)
    return None


def take_all(pid: int, kinds: Set[str]) -> Iterator[socket]:
    """All sockets of a process whose ``protocol_name`` is one of ``kinds``.

    The caller closes them. Raises NotFound, PermissionDenied, KernelError.
    """
    process = os.pidfd_open(pid)
    try:
        for _, number in descriptors_of(pid):
            if protocol_name(pid, number) in kinds:
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
            raise _failed(pid, last_error())
        return fd
    finally:
        os.close(process)


def _getfd(process: int, number: int) -> int:
    fd: int = libc.syscall(
        ctypes.c_long(_PIDFD_GETFD), ctypes.c_int(process), ctypes.c_int(number), ctypes.c_uint(0)
    )
    return fd


def _take(process: int, number: int, pid: int) -> socket | None:
    fd = _getfd(process, number)
    if fd < 0:
        number = last_error()
        if number in (errno.EBADF, errno.ESRCH):
            return None
        raise _failed(pid, number)
    try:
        return socket(fileno=fd)
    except OSError:
        os.close(fd)  # no socket any more
        return None


def cookie_of(held: socket) -> int | None:
    """SO_COOKIE, a number that no other socket has while the kernel runs.

    None for a socket of a family without that option.
    """
    try:
        return int.from_bytes(held.getsockopt(SOL_SOCKET, _SO_COOKIE, 8), byteorder)
    except OSError:
        return None


def _failed(pid: int, number: int) -> PermissionDenied | KernelError:
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDenied(f"take a socket of process {pid}: not permitted: needs root")
    return KernelError(f"take a socket of process {pid}", number)
