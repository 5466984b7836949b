# SPDX-License-Identifier: GPL-2.0-only
"""Other programs, by subprocess, for the few commands whose purpose is to run one.

Each is run by its absolute path, without a shell, with an empty stdin and an environment
that does not depend on the caller's. Its output goes to the caller's stdout and stderr;
flush these before.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess

from zfw_py.errors import KernelError, NotFound, ZfwError

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def run(path: str, *arguments: str, timeout: float) -> int:
    """Run a program to its end; its exit code, negative for a signal.

    After ``timeout`` seconds its whole process group is killed. Raises NotFound,
    KernelError, and ZfwError for the time-out.
    """
    try:
        process = subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise NotFound(f"{path}: no such program, or what it is run by is missing") from None
    except OSError as error:
        raise KernelError(f"run {path}", error.errno or 0) from error
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise ZfwError(f"{path}: not done after {timeout:.0f} s, killed") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_own(path: str, *, timeout: float) -> None:
    """Run a program without arguments if only root can have written it.

    Raises NotFound, and ZfwError if another user may have written it or it fails.
    """
    _check(path)
    code = run(path, timeout=timeout)
    if code < 0:
        raise ZfwError(f"{path} was ended by signal {-code}")
    if code > 0:
        raise ZfwError(f"{path} failed with exit code {code}")


def _check(path: str) -> None:
    """Refuse a path that is no executable file, or that another user can replace."""
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
        # In a sticky directory other users cannot replace a file of root's.
        is_sticky = place != path and found.st_mode & stat.S_ISVTX
        if found.st_mode & _OTHERS_WRITE and not is_sticky:
            raise ZfwError(f"{path}: {place} can be written by others than root")
    if not stat.S_ISREG(found.st_mode):
        raise ZfwError(f"{path}: not a file")
    if not found.st_mode & stat.S_IXUSR:
        raise ZfwError(f"{path}: not executable", hint=f"chmod 755 {path}")
