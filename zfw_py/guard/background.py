# SPDX-License-Identifier: GPL-2.0-only
"""Forks a process that goes on in the background when its creator has returned."""

from __future__ import annotations

import os
import resource
import signal
import syslog
import traceback
from json import dumps, loads
from typing import TYPE_CHECKING

from zfw_py.errors import Busy, Conflict, NotFound, PermissionDenied, UsageError, ZfwError
from zfw_py.kernel.process import inheritable_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Body = Callable[[Callable[[], None], int], None]

_MAX_TEXT = 65_536
# By exit code, the class of an error that the process reports; its creator raises it again.
_ERRORS = {
    each.exit_code: each for each in (UsageError, NotFound, Conflict, Busy, PermissionDenied)
}


class Background:
    """A process in the background, as its creator sees it."""

    def __init__(self, pid: int, creator_end: int) -> None:
        """``creator_end`` is the end of a pipe that the creator holds until ``release``."""
        self.pid = pid
        self._creator_end = creator_end
        self._has_ended = False

    def release(self) -> None:
        """Close the pipe: from now on the process acts on its own."""
        if self._creator_end >= 0:
            os.close(self._creator_end)
            self._creator_end = -1

    def __del__(self) -> None:
        self.release()

    def has_just_ended(self) -> bool:
        """Whether the process has ended since the last call."""
        if self._has_ended:
            return False
        try:
            self._has_ended = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            self._has_ended = True  # SIGCHLD was ignored for a while
        return self._has_ended


def start(body: Body, *, has_stderr: bool, closes: Iterable[int]) -> Background:
    """Fork a process that calls ``body(ready, creator)``, and return when it has called ``ready``.

    The process has a session of its own, /dev/null on stdin and stdout, and its creator's stderr
    if ``has_stderr``, else /dev/null. It closes descriptors that a command would inherit, and
    ``closes``. ``creator`` is a pipe that ends when the creator calls ``release`` or ends. Raises
    a ZfwError that the body raises before ``ready``; any other error of the body goes to syslog.
    """
    report, report_end = os.pipe()
    creator, creator_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for each in (report, creator_end, *closes):
                os.close(each)
            os.setsid()
            _close_inheritable()
            _set_up(has_stderr=has_stderr)
            code = _run(body, report_end, creator)
        finally:
            # Not sys.exit(): the creator's own clean-up is not for this process.
            os._exit(code)
    os.close(report_end)
    os.close(creator)
    with open(report, "rb") as file:
        text = file.read(_MAX_TEXT)
    if not text:
        _reap(pid, creator_end)
        raise ZfwError("the guard's process ended at once", hint="the system's log may say why")
    failure = loads(text)
    if failure is None:
        return Background(pid, creator_end)
    _reap(pid, creator_end)
    kind = _ERRORS.get(failure["exit_code"], ZfwError)
    raise kind(failure["message"], hint=failure["hint"])


def _reap(pid: int, creator_end: int) -> None:
    os.close(creator_end)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # SIGCHLD is ignored


def fill_stdio() -> None:
    """Open /dev/null at 0, 1 and 2 where they are closed, so that no other file gets them.

    The descriptors are close-on-exec: a command finds its stdio as the caller left it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)


def _close_inheritable() -> None:
    """Close what the creator's caller left open for it: the reader of such a pipe waits for us."""
    for fd in inheritable_descriptors():
        if fd > 2:
            os.close(fd)


def _set_up(*, has_stderr: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1) if has_stderr else (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    os.chdir("/")
    # Each query to an upstream server takes a descriptor, and each network namespace ten.
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Signals of a terminal are for the command, not for this process.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)


def _run(body: Body, report_end: int, creator: int) -> int:
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True
        _report(report_end, None)

    try:
        body(ready, creator)
    except ZfwError as error:
        if is_ready:
            syslog.syslog(syslog.LOG_ERR, f"zfw guard: {error}")
        else:
            _report(
                report_end,
                {"message": str(error), "hint": error.hint, "exit_code": error.exit_code},
            )
        return error.exit_code
    except BaseException:  # noqa: BLE001 - the process has no terminal to print it on
        syslog.syslog(syslog.LOG_CRIT, f"zfw guard: {traceback.format_exc()}")
        return 1
    return 0


def _report(report_end: int, failure: object) -> None:
    try:
        os.write(report_end, dumps(failure).encode())
    except BrokenPipeError:
        pass  # the creator was killed
    os.close(report_end)


def release_stderr() -> None:
    """From within the process: replace the creator's stderr by /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
