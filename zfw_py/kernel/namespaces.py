# SPDX-License-Identifier: GPL-2.0-only
"""Other network namespaces, by setns(2) and /proc: find, hold and enter them.

The kernel has no list of network namespaces. One exists while a thread is in it, a
descriptor is open on it or its file is mounted somewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from fcntl import ioctl
from glob import iglob
from typing import TYPE_CHECKING, TypeVar

from zfw_py.errors import KernelError, NotFound, PermissionDenied, UsageError
from zfw_py.kernel.libc import last_error, libc
from zfw_py.kernel.own_netns import netns_cookie

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

_Result = TypeVar("_Result")

_CLONE_NEWNET = 0x40000000
_SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h
# Stands for the cookie of a namespace that the caller cannot enter. No namespace has cookie 0.
_UNSEEN = 0
# Where namespaces are found. A path is used after the search, so the ones that last come first.
_PATTERNS = (
    "/proc/[0-9]*/ns/net",
    "/proc/[0-9]*/fd/[0-9]*",
    "/proc/[0-9]*/task/[0-9]*/ns/net",
)
# PROC_PID_INIT_INO, include/linux/proc_ns.h
_FIRST_PID_NAMESPACE = "pid:[4026531836]"


def live_cookies() -> set[int] | None:
    """The cookies of all network namespaces, or None if the caller cannot see all of them.

    In a PID namespace of its own a caller does not see the processes outside, nor their
    namespaces. Without CAP_SYS_ADMIN it cannot enter a namespace and read its cookie.
    """
    if os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE:
        return None
    cookies = _seen()
    return None if _UNSEEN in cookies else set(cookies)


def find(cookie: int) -> str | None:
    """A path to the network namespace of this cookie; None if the caller sees no such.

    The path is good for as long as the process or mount that it belongs to.
    """
    return _seen().get(cookie)


def path_of(pid: int) -> str:
    """The file of a process's network namespace."""
    return f"/proc/{pid}/ns/net"


def _seen() -> dict[int, str]:
    """A path to each network namespace that the caller can see, by cookie."""
    paths: dict[str, list[str]] = {}
    for pattern in _PATTERNS:
        for path in iglob(pattern):
            try:
                target = os.readlink(path)
            except OSError:
                continue  # the process has ended, or a security module protects it even from root
            if target.startswith("net:["):
                paths.setdefault(target, []).append(path)
    for mountinfo in iglob("/proc/[0-9]*/mountinfo"):
        for target, path in _mounted(mountinfo).items():
            paths.setdefault(target, []).append(path)
    return _in_thread(lambda: _visit(paths))


def hold(path: str | None = None) -> int:
    """A descriptor that keeps a network namespace alive; the caller closes it.

    ``path`` is as for ``call_in``; without it the namespace is the calling thread's own.
    Raises NotFound, PermissionDenied, KernelError, and UsageError if the path is no file.
    """
    path = path or "/proc/thread-self/ns/net"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        raise NotFound(f"no such network namespace: {path}") from None
    except PermissionError:
        raise PermissionDenied(f"open {path}: needs root") from None
    except OSError as error:
        raise KernelError(f"open {path}", error.errno or 0) from error
    # setns(2) opens the path again. Of a FIFO that would block.
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path}: not a network namespace")
    return fd


def call_in(path: str, function: Callable[[], _Result]) -> _Result:
    """Call a function in another network namespace; its result, or the error that it raises.

    ``path`` names the namespace: ``/proc/PID/ns/net``, a file that ``ip netns`` made, a
    ``process.descriptor_path()``. The function runs in a thread of its own. Sockets that it
    makes belong to that namespace for good. Raises NotFound, PermissionDenied, KernelError,
    and UsageError if the file is no network namespace.
    """

    def call() -> _Result:
        enter(path)
        return function()

    return _in_thread(call)


def call_here(fd: int, function: Callable[[], _Result]) -> _Result:
    """Call a function in the network namespace of a descriptor, in the calling thread.

    For a call that is too frequent for a thread of its own, such as socket(2). The process ends if
    the thread cannot return to its own namespace: it must not go on in another one. Raises
    KernelError, and what the function raises.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            raise KernelError("enter a network namespace", last_error())
        try:
            return function()
        finally:
            if libc.setns(home, _CLONE_NEWNET) != 0:
                os._exit(1)
    finally:
        os.close(home)


def namespace_of_socket(made: socket) -> int:
    """A descriptor of a socket's network namespace; the caller closes it. Raises OSError.

    Needs CAP_NET_ADMIN there. Since 4.10 (c62cce2caee5).
    """
    return ioctl(made, _SIOCGSKNS)


def inodes_of(pid: int) -> set[int]:
    """The inodes of the network namespaces of a process's threads; empty if it has ended."""
    found = set()
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found.add(os.stat(f"/proc/{pid}/task/{thread}/ns/net").st_ino)
    return found


def _in_thread(function: Callable[[], _Result]) -> _Result:
    """Run in a new thread: setns(2) moves the calling thread alone, and this one then ends.

    Raises KernelError if no thread can be started, beside what the function raises.
    """
    from concurrent.futures import Future
    from threading import Thread

    done: Future[_Result] = Future()

    def call() -> None:
        try:
            done.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised by the caller's thread
            done.set_exception(error)

    thread = Thread(target=call, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # pids.max or RLIMIT_NPROC is reached; Python has no number
        raise KernelError("start a thread", errno.EAGAIN) from error
    thread.join()
    return done.result()


def enter(path: str) -> None:
    """Move the calling thread into a network namespace, for good. Raises as ``call_in``."""
    operation = f"enter the network namespace {path}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH):
            raise NotFound(f"no such network namespace: {path}") from error
        raise _refused(operation, error.errno or 0) from error
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            if last_error() == errno.EINVAL:
                raise UsageError(f"{path}: not a network namespace")
            raise _refused(operation, last_error())
    finally:
        os.close(fd)


def _refused(operation: str, number: int) -> PermissionDenied | KernelError:
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDenied(f"{operation}: needs root")
    return KernelError(operation, number)


def _mounted(mountinfo: str) -> dict[str, str]:
    """Namespaces that are mounted as files, as ``ip netns`` mounts them: "net:[INODE]" and path."""
    found = {}
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split()
                if fields[3].startswith("net:["):
                    found[fields[3]] = f"{os.path.dirname(mountinfo)}/root{fields[4]}"
    except OSError:
        pass  # the process has ended
    return found


def _visit(paths: dict[str, list[str]]) -> dict[int, str]:
    cookies = {}
    for target, candidates in paths.items():
        is_denied = False
        # The first path may be of a thread that has ended since. The next may still work.
        for path in candidates:
            try:
                enter(path)
            except PermissionDenied:
                is_denied = True
            except (NotFound, UsageError, KernelError):
                continue
            else:
                if os.readlink("/proc/thread-self/ns/net") == target:
                    cookies[netns_cookie()] = path
                    break
        else:
            if is_denied:
                cookies[_UNSEEN] = target
    return cookies
