# SPDX-License-Identifier: GPL-2.0-only
"""Forks a process that goes on in the background when its creator has returned."""

from __future__ import annotations

import os
import resource
import signal
import syslog
import traceback
from json import dumps, loads
from typing import TYPE_CHECKING, Any

from zfw_py.errors import Busy, Conflict, NotFound, PermissionDenied, UsageError, ZfwError
from zfw_py.kernel.process import inheritable_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Body = Callable[["Report", int], None]

_MAX_TEXT = 65_536
# By exit code, the class of an error that the process reports; its creator raises it again.
_ERRORS = {
    each.exit_code: each for each in (UsageError, NotFound, Conflict, Busy, PermissionDenied)
}
_NO_REPORT: dict[str, Any] = {
    "message": "the guard's process ended at once",
    "hint": "the system's log may say why",
    "exit_code": ZfwError.exit_code,
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

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        if not self._has_ended:
            try:
                self._has_ended = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
            except ChildProcessError:
                self._has_ended = True  # SIGCHLD was ignored for a while
        return self._has_ended


class Report:
    """A child's report to the process that forked it: once, that it is ready or why it failed."""

    def __init__(self, end: int) -> None:
        """``end`` is the write end of a pipe."""
        self._end = end

    @property
    def descriptors(self) -> list[int]:
        """What a process that the child forks has to close, so that the pipe ends."""
        return [] if self.is_made else [self._end]

    @property
    def is_made(self) -> bool:
        """Whether the report was made."""
        return self._end < 0

    def ready(self) -> None:
        """Report that the child is ready."""
        self._make(None)

    def failed(self, error: ZfwError) -> None:
        """Report an error, which the other process raises."""
        self._make({"message": str(error), "hint": error.hint, "exit_code": error.exit_code})

    def _make(self, failure: object) -> None:
        try:
            os.write(self._end, dumps(failure).encode())
        except BrokenPipeError:
            pass  # the other process was killed
        os.close(self._end)
        self._end = -1


def start(body: Body, *, has_stderr: bool, closes: Iterable[int]) -> Background:
    """Fork a process that calls ``body(report, creator)``; return when it has reported.

    The process has a session of its own, /dev/null on stdin and stdout, and its creator's stderr
    if ``has_stderr``, else /dev/null. It closes descriptors that a command would inherit, and
    ``closes``. ``creator`` is a pipe that ends when the creator calls ``release`` or ends. Raises
    as ``fork``.
    """
    creator, creator_end = os.pipe()

    def run(report: Report) -> None:
        os.close(creator_end)
        os.setsid()
        _close_inheritable()
        _set_up(has_stderr=has_stderr)
        body(report, creator)

    try:
        pid = fork(run, closes)
    except BaseException:
        os.close(creator_end)
        raise
    finally:
        os.close(creator)
    return Background(pid, creator_end)


def fork(body: Callable[[Report], None], closes: Iterable[int]) -> int:
    """Fork a child that closes ``closes`` and calls ``body(report)``; its pid once it has reported.

    Raises a ZfwError that the body raises before its report, ZfwError if the child ends without
    one. Any other error of the body goes to syslog.
    """
    report, report_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for each in (report, *closes):
                os.close(each)
            code = _run(body, Report(report_end))
        finally:
            # Not sys.exit(): the creator's own clean-up is not for this process.
            os._exit(code)
    os.close(report_end)
    with open(report, "rb") as file:
        text = file.read(_MAX_TEXT)
    failure = loads(text) if text else _NO_REPORT
    if failure is None:
        return pid
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # SIGCHLD is ignored
    kind = _ERRORS.get(failure["exit_code"], ZfwError)
    raise kind(failure["message"], hint=failure["hint"])


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
    # It waits for its own child, also where its creator ignores its children.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _run(body: Callable[[Report], None], report: Report) -> int:
    try:
        body(report)
    except ZfwError as error:
        if report.is_made:
            syslog.syslog(syslog.LOG_ERR, f"zfw guard: {error}")
        else:
            report.failed(error)
        return error.exit_code
    except BaseException:  # noqa: BLE001 - the process has no terminal to print it on
        syslog.syslog(syslog.LOG_CRIT, f"zfw guard: {traceback.format_exc()}")
        return 1
    return 0


def release_stderr() -> None:
    """From within the process: replace the creator's stderr by /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
