# SPDX-License-Identifier: GPL-2.0-only
"""The process that keeps a guard: whether it lives, and how it is ended."""

from __future__ import annotations

import errno
import os
import select
import signal

from zfw_py.errors import ZfwError
from zfw_py.guard.codec import Keeper
from zfw_py.kernel.process import start_time

_PATIENCE = 5.0  # seconds


def this_process() -> Keeper:
    """The caller."""
    return Keeper(start_time(os.getpid()) or 0, os.getpid())


def is_alive(keeper: Keeper) -> bool:
    """Whether it lives."""
    return keeper.pid != 0 and start_time(keeper.pid) == keeper.start_time


def end(keeper: Keeper) -> None:
    """End it, if it lives and is not the caller, and wait until it has.

    Raises ZfwError if it does not end.
    """
    if keeper.pid in (0, os.getpid()):
        return
    try:
        process = os.pidfd_open(keeper.pid)
    except ProcessLookupError:
        return
    try:
        # The descriptor names a process for good; the number may be another's by now.
        if not is_alive(keeper):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(process, number)
            if _has_ended(process):
                _reap(keeper.pid)
                return
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise
        return
    finally:
        os.close(process)
    raise ZfwError(f"the guard's process {keeper.pid} does not end")


def _has_ended(process: int) -> bool:
    return bool(select.select([process], [], [], _PATIENCE)[0])


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # another's, who waits for it
