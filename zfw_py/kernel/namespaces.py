# SPDX-License-Identifier: GPL-2.0-only
"""Which network namespaces there still are.

The kernel has no list of them; they are what threads are in, what descriptors
hold open and what is mounted somewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from glob import iglob

from zfw_py.kernel.netns import netns_cookie

_CLONE_NEWNET = 0x40000000
# Stands among the cookies for a namespace that could not be entered; none has it.
_UNSEEN = 0
# PROC_PID_INIT_INO, include/linux/proc_ns.h
_FIRST_PID_NAMESPACE = "pid:[4026531836]"


def live_cookies() -> set[int] | None:
    """The cookies of all network namespaces, or None where not all can be seen.

    From within a PID namespace other processes, and what they hold, are hidden;
    without CAP_SYS_ADMIN no namespace can be entered.
    """
    if os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE:
        return None
    paths: dict[str, str] = {}
    for pattern in ("/proc/[0-9]*/task/[0-9]*/ns/net", "/proc/[0-9]*/fd/[0-9]*"):
        for path in iglob(pattern):
            try:
                target = os.readlink(path)
            except OSError:
                continue  # it ended meanwhile, or is shielded even from root
            if target.startswith("net:["):
                paths.setdefault(target, path)
    for path in iglob("/proc/[0-9]*/mountinfo"):
        paths.update(_mounted(path))
    cookies: set[int] = set()
    # setns(2) moves a thread; this one ends, and the caller stays where it is.
    thread = threading.Thread(target=_visit, args=(list(paths.values()), cookies))
    thread.start()
    thread.join()
    return None if _UNSEEN in cookies else cookies


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


def _visit(paths: list[str], cookies: set[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile
        try:
            if libc.setns(fd, _CLONE_NEWNET) == 0:
                cookies.add(netns_cookie())
            elif ctypes.get_errno() == errno.EPERM:
                cookies.add(_UNSEEN)
        finally:
            os.close(fd)
