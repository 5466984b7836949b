# SPDX-License-Identifier: GPL-2.0-only
"""Run a program of the administrator's as root: only one that nobody else can have changed."""

from __future__ import annotations

import errno
import os
import signal
import stat

from zfw_py.errors import KernelError, NotFound, ZfwError

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def _check(path: str) -> None:
    """Refuse what is no executable file, or could be another one by the time it runs."""
    parts = path.split("/")
    places = ["/".join(parts[:n]) or "/" for n in range(1, len(parts) + 1)]
    for place in places:
        try:
            found = os.lstat(place)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise NotFound(f"{path}: no such file") from None
            raise KernelError(f"look at {place}", error.errno or 0) from error
        if stat.S_ISLNK(found.st_mode):
            raise ZfwError(f"{path}: {place} is a link, which is not followed")
        if found.st_uid != 0:
            raise ZfwError(f"{path}: {place} is not root's")
        # In a sticky directory others cannot exchange what is root's.
        is_sticky = place != path and found.st_mode & stat.S_ISVTX
        if found.st_mode & _OTHERS_WRITE and not is_sticky:
            raise ZfwError(f"{path}: {place} can be written by others than root")
    if not stat.S_ISREG(found.st_mode):
        raise ZfwError(f"{path}: not a file")
    if not found.st_mode & stat.S_IXUSR:
        raise ZfwError(f"{path}: not executable", hint=f"chmod 755 {path}")


def run(path: str) -> None:
    """Run the program at this absolute path to its end, without arguments.

    It gets no input and a minimal environment; its output is ours. Raises
    NotFound, or ZfwError if it is not run or fails.
    """
    _check(path)
    try:
        child = os.posix_spawn(
            path,
            [path],
            _ENVIRONMENT,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)],
            # Python ignores these, and a program would inherit that.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    except OSError as error:
        hint = (
            "it has to begin with a line like #!/bin/sh" if error.errno == errno.ENOEXEC else None
        )
        raise KernelError(f"run {path}", error.errno or 0, hint=hint) from error
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        raise ZfwError(f"{path} was ended by signal {-code}")
    if code > 0:
        raise ZfwError(f"{path} failed with exit code {code}")
