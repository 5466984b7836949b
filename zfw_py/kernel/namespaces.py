# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces: which ones there still are, and a call from within one.

The kernel has no list of them; they are what threads are in, what descriptors
hold open and what is mounted somewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from glob import iglob
from typing import TYPE_CHECKING, TypeVar

from zfw_py.errors import KernelError, NotFound, PermissionDenied, UsageError
from zfw_py.kernel.netns import netns_cookie

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")

_CLONE_NEWNET = 0x40000000
# Stands among the cookies for a namespace that could not be entered; none has it.
_UNSEEN = 0
# What has a namespace. Those that last come first: a path that was found is used later on.
_PATTERNS = (
    "/proc/[0-9]*/ns/net",
    "/proc/[0-9]*/fd/[0-9]*",
    "/proc/[0-9]*/task/[0-9]*/ns/net",
)
# PROC_PID_INIT_INO, include/linux/proc_ns.h
_FIRST_PID_NAMESPACE = "pid:[4026531836]"

_libc = ctypes.CDLL(None, use_errno=True)


def live_cookies() -> set[int] | None:
    """The cookies of all network namespaces, or None where not all can be seen.

    From within a PID namespace other processes, and what they hold, are hidden;
    without CAP_SYS_ADMIN no namespace can be entered.
    """
    if os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE:
        return None
    cookies = _seen()
    return None if _UNSEEN in cookies else set(cookies)


def find(cookie: int) -> str | None:
    """A path that leads to the network namespace of a cookie, for now; None: none that is seen."""
    return _seen().get(cookie)


def _seen() -> dict[int, str]:
    """By cookie a path to each network namespace that can be seen from here."""
    paths: dict[str, list[str]] = {}
    for pattern in _PATTERNS:
        for path in iglob(pattern):
            try:
                target = os.readlink(path)
            except OSError:
                continue  # it ended meanwhile, or is shielded even from root
            if target.startswith("net:["):
                paths.setdefault(target, []).append(path)
    for mountinfo in iglob("/proc/[0-9]*/mountinfo"):
        for target, path in _mounted(mountinfo).items():
            paths.setdefault(target, []).append(path)
    return _in_thread(lambda: _visit(paths))


def hold(path: str) -> int:
    """A descriptor that keeps a network namespace, whoever ends; the caller closes it.

    Raises NotFound, PermissionDenied, KernelError, and UsageError for what is no file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        raise NotFound(f"no such network namespace: {path}") from None
    except PermissionError:
        raise PermissionDenied(f"open {path}: needs root") from None
    except OSError as error:
        raise KernelError(f"open {path}", error.errno or 0) from error
    # Opened again, a pipe would be waited for.
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path}: not a network namespace")
    return fd


def call_in(path: str, function: Callable[[], _Result]) -> _Result:
    """What a function returns, or raises, when it is called in another network namespace.

    ``path`` names the namespace: ``/proc/PID/ns/net``, a file that ``ip netns`` made, a
    descriptor beneath ``/proc/self/fd``. The function runs in a thread that ends with it;
    sockets that it makes belong to that namespace for good. Raises NotFound,
    PermissionDenied, and UsageError if the file is no network namespace.
    """

    def call() -> _Result:
        enter(path)
        return function()

    return _in_thread(call)


def _in_thread(function: Callable[[], _Result]) -> _Result:
    """setns(2) moves a thread; this one ends, and the caller stays where it is."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(function).result()


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
        if _libc.setns(fd, _CLONE_NEWNET) != 0:
            if ctypes.get_errno() == errno.EINVAL:
                raise UsageError(f"{path}: not a network namespace")
            raise _refused(operation, ctypes.get_errno())
    finally:
        os.close(fd)


def _refused(operation: str, number: int) -> PermissionDenied | KernelError:
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDenied(f"{operation}: needs root")
    return KernelError(operation, number)


def _mounted(mountinfo: str) -> dict[str, str]:
    """Namespaces bind-mounted as files, as `ip netns` does: root and path of each (proc(5))."""
    found = {}
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split()
                if fields[3].startswith("net:["):
                    found[fields[3]] = f"{os.path.dirname(mountinfo)}/root{fields[4]}"
    except OSError:
        pass  # the process ended meanwhile
    return found


def _visit(paths: dict[str, list[str]]) -> dict[int, str]:
    cookies = {}
    for target, candidates in paths.items():
        is_denied = False
        # The first may be of a thread that has ended meanwhile; another has the namespace still.
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
